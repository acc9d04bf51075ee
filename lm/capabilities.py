"""What a device and a backend can do, as plain data: no JAX here.

`lm/parallel/devices.py` looks at the real machine and fills in a `Capabilities`; `resolve` in
`lm/resolve.py` and the tests read it. A backend that cannot honour a mask is refused when the
config is resolved, never ignored.
"""

import dataclasses
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """What one attention is asked for."""

    dtype: str = "float32"
    head_dim: int = 64
    num_queries: int = 1024
    segment_ids: bool = False  # packed documents kept apart
    window: bool = False  # sliding window
    softcap: bool = False  # logit soft cap
    q_offset: bool = False  # the first query is not at the first key, or not as many keys as queries: a cache
    lse: bool = False  # the log-sum-exp too, differentiable
    deterministic: bool = False


@dataclasses.dataclass(frozen=True)
class AttentionSupport:
    """What one attention implementation honours; the flags are those of `AttentionCall`."""

    segment_ids: bool = True
    window: bool = True
    softcap: bool = True
    q_offset: bool = True
    lse: bool = True
    deterministic: bool = True
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")  # compute types
    head_dims: Collection[int] = range(1, 2**16)
    min_queries: int = 1

    def lacks(self, call: AttentionCall) -> str | None:
        """Return the field of `call` that this implementation cannot honour, or None."""
        flags = ("segment_ids", "window", "softcap", "q_offset", "lse", "deterministic")
        missing = [name for name in flags if getattr(call, name) and not getattr(self, name)]
        if call.dtype not in self.dtypes:
            missing.append("dtype")
        if call.head_dim not in self.head_dims:
            missing.append("head_dim")
        if call.num_queries < self.min_queries:
            missing.append("num_queries")
        return missing[0] if missing else None


# Every implementation that `lm.kernels.flash_attention` dispatches to, the best first. What a call needs and an
# implementation lacks (a cache while sampling, a head width) goes to `blockwise`. `reference` holds all logits at once.
ATTENTION: Mapping[str, AttentionSupport] = {
    # Pallas kernels whose smallest block is of 128 queries: a decoding step's one query would waste the rest.
    "tpu": AttentionSupport(platforms=("tpu",), dtypes=("float32", "bfloat16"), min_queries=16),
    # cuDNN through `jax.nn.dot_product_attention`; wider heads, which Hopper has forward, are not the same everywhere.
    "cudnn": AttentionSupport(
        segment_ids=False,
        softcap=False,
        q_offset=False,
        lse=False,
        deterministic=False,
        platforms=("gpu",),
        dtypes=("bfloat16", "float16"),
        head_dims=range(8, 129, 8),
    ),
    "blockwise": AttentionSupport(),
    "reference": AttentionSupport(),
}

# Every implementation of the experts' grouped matmuls in `lm.kernels.experts`.
EXPERTS = ("ragged", "blocked")

# Dense peak matmul rate in FLOP/s per device and type of the operands, from the vendors' data sheets
# (no structured sparsity). A device that is not listed has no MFU: null, never 0. A TPU7x chip is two devices.
PEAK_FLOPS: Mapping[str, Mapping[str, float]] = {
    "TPU v4": {"bfloat16": 275e12, "int8": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12, "int8": 393e12},
    "TPU v5": {"bfloat16": 459e12, "int8": 918e12},
    "TPU v5p": {"bfloat16": 459e12, "int8": 918e12},
    "TPU v6 lite": {"bfloat16": 918e12, "int8": 1836e12},
    "TPU7x": {"bfloat16": 2307e12 / 2, "float8": 4614e12 / 2},
    "NVIDIA L4": {"bfloat16": 121e12, "float16": 121e12, "float8": 242e12, "int8": 242e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float16": 312e12, "int8": 624e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float16": 989e12, "float8": 1979e12, "int8": 1979e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float16": 989e12, "float8": 1979e12, "int8": 1979e12},
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
    "NVIDIA L4": int(0.75 * 22.5 * 2**30),
    "NVIDIA A100-SXM4-80GB": int(0.75 * 79.2 * 2**30),
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

    def attention_for(self, name: str, call: AttentionCall) -> str:
        """Return the implementation that `auto` (or a name) stands for: the first here that honours the call."""
        if name != "auto":
            return name
        here = ((n, s) for n, s in self.attention.items() if self.platform in s.platforms)
        return next((n for n, support in here if support.lacks(call) is None), "blockwise")

    def experts_for(self, name: str) -> str:
        """Return the implementation of the experts' matmuls that `auto` (or a name) stands for.

        XLA's CPU backend computes `ragged_dot` once per expert over all tokens; blocks of tokens cost
        about what the tokens do.
        """
        return ("blocked" if self.platform == "cpu" else "ragged") if name == "auto" else name

    def scan_unroll_for(self, unroll: int | None, groups: int, remat: str) -> int:
        """Return how many of the layer groups an iteration of their loop holds, where None stands for the fastest.

        XLA's CPU backend optimizes a loop's body alone and copies what the iterations keep: unrolled, steps take
        3 to 7 % less time. Each group adds half a second of compilation: the greatest divisor up to 8. Not with
        remat, which the compiler undoes where it sees the two passes of a layer in one body.
        """
        if unroll is not None:
            return unroll
        pays = self.platform == "cpu" and remat == "none" and groups
        return max(n for n in range(1, 9) if groups % n == 0) if pays else 1


def _of_kind(table: Mapping, device_kind: str):
    """Return the entry with the longest name that the device kind begins with, or None."""
    matches = [kind for kind in table if device_kind.startswith(kind)]
    return table[max(matches, key=len)] if matches else None
