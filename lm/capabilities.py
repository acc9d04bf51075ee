"""What a device and a backend can do, as plain data: no JAX here.

`lm/parallel/devices.py` looks at the real machine and fills in a `Capabilities`; `resolve` in
`lm/resolve.py` and the tests read it. A backend that cannot honour a mask is refused when the
config is resolved, never ignored.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class AttentionSupport:
    """What one attention implementation honours."""

    segment_ids: bool = True  # packed documents kept apart
    window: bool = True  # sliding window
    softcap: bool = True  # logit soft cap
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")  # compute types


# Every implementation that `lm.kernels.flash_attention` dispatches to. `reference` holds all logits at once;
# `tpu`, the Pallas kernels, compiles for every TPU but has run interpreted only, so `auto` does not choose it yet.
ATTENTION: Mapping[str, AttentionSupport] = {
    "blockwise": AttentionSupport(),
    "tpu": AttentionSupport(platforms=("tpu",), dtypes=("float32", "bfloat16")),
    "reference": AttentionSupport(),
}

# Every implementation of the experts' grouped matmuls in `lm.kernels.experts`.
EXPERTS = ("ragged", "blocked")

# Dense peak matmul rate in FLOP/s per chip and compute type, from the vendors' data sheets
# (no structured sparsity). A device that is not listed has no MFU: null, never 0.
PEAK_FLOPS: Mapping[str, Mapping[str, float]] = {
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float16": 312e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float16": 989e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float16": 989e12},
}

# Device kinds, by how they begin, whose matmuls take float8 operands: Hopper, Blackwell, Ironwood.
FLOAT8_MATMUL = ("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200", "NVIDIA B200", "NVIDIA GB200", "TPU7x")

# What a program may use of one device's memory, in bytes: on TPUs as their compiler reports it; on GPUs
# the three quarters that JAX takes by default.
MEMORY_BYTES: Mapping[str, int] = {
    "TPU v4": int(30.75 * 2**30),
    "TPU v5 lite": int(15.75 * 2**30),
    "TPU v5": int(95.74 * 2**30),
    "TPU v6 lite": int(31.25 * 2**30),
    "TPU7x": int(94.75 * 2**30),
    "NVIDIA H100 80GB HBM3": int(0.75 * 79.6 * 2**30),
    "NVIDIA H200": int(0.75 * 141 * 2**30),
}


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """One machine, as seen by `resolve`: the backend, its devices and what they support."""

    platform: str = "cpu"
    device_kind: str = "cpu"
    attention: Mapping[str, AttentionSupport] = dataclasses.field(default_factory=lambda: ATTENTION)

    @property
    def memory_bytes(self) -> int | None:
        """What a program may use of one device's memory, or None where it is not known."""
        return _of_kind(MEMORY_BYTES, self.device_kind)

    @property
    def can_offload(self) -> bool:
        """Whether the host's memory is another one: on a CPU JAX accepts an offload and saves nothing by it."""
        return self.platform in ("gpu", "tpu")

    def peak_flops(self, dtype: str) -> float | None:
        """Return the chip's peak FLOP/s for a compute type, or None where it is not known."""
        return (_of_kind(PEAK_FLOPS, self.device_kind) or {}).get(dtype)

    @property
    def has_float8(self) -> bool:
        """Whether matmuls of float8 operands run in hardware."""
        return self.device_kind.startswith(FLOAT8_MATMUL)

    def attention_for(self, name: str) -> str:
        """Return the implementation that `auto` (or a name) stands for on this platform."""
        return "blockwise" if name == "auto" else name

    def experts_for(self, name: str) -> str:
        """Return the implementation of the experts' matmuls that `auto` (or a name) stands for.

        XLA's CPU backend computes `ragged_dot` once per expert over all tokens; blocks of tokens cost
        about what the tokens do.
        """
        return ("blocked" if self.platform == "cpu" else "ragged") if name == "auto" else name

    def scan_unroll_for(self, unroll: int | None, groups: int) -> int:
        """Return how many of the layer groups an iteration of their loop holds, where None stands for the fastest.

        XLA's CPU backend optimizes a loop's body alone and copies what the iterations keep: unrolled, steps take
        3 to 7 % less time. Each group adds half a second of compilation: the greatest divisor up to 8.
        """
        if unroll is not None:
            return unroll
        return max(n for n in range(1, 9) if groups % n == 0) if self.platform == "cpu" and groups else 1


def _of_kind(table: Mapping, device_kind: str):
    """Return the entry with the longest name that the device kind begins with, or None."""
    matches = [kind for kind in table if device_kind.startswith(kind)]
    return table[max(matches, key=len)] if matches else None
