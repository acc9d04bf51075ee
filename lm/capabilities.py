"""What a device and a backend can do, as plain data: no JAX here.

`lm/parallel/devices.py` looks at the real machine and fills in a `Capabilities`; `resolve` in
`lm/config.py` and the tests read it. A backend that cannot honour a mask is refused when the
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


# Every implementation that `lm.kernels.attention` dispatches to.
ATTENTION: Mapping[str, AttentionSupport] = {"reference": AttentionSupport()}

# Dense peak matmul rate in FLOP/s per chip and compute type, from the vendors' data sheets
# (no structured sparsity). A device that is not listed has no MFU: null, never 0.
PEAK_FLOPS: Mapping[str, Mapping[str, float]] = {
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    "NVIDIA A100": {"bfloat16": 312e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12},
    "NVIDIA H200": {"bfloat16": 989e12},
}


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """One machine, as seen by `resolve`: the backend, its devices and what they support."""

    platform: str = "cpu"
    device_kind: str = "cpu"
    attention: Mapping[str, AttentionSupport] = dataclasses.field(default_factory=lambda: ATTENTION)
    memory_bytes: int | None = None  # of one device, what a program may use of it; None: not known

    @property
    def can_offload(self) -> bool:
        """Whether the host's memory is another one: on a CPU JAX accepts an offload and saves nothing by it."""
        return self.platform in ("gpu", "tpu")

    def peak_flops(self, dtype: str) -> float | None:
        """Return the chip's peak FLOP/s for a compute type, or None where it is not known."""
        matches = [kind for kind in PEAK_FLOPS if self.device_kind.startswith(kind)]
        return PEAK_FLOPS[max(matches, key=len)].get(dtype) if matches else None

    def attention_for(self, name: str) -> str:
        """Return the implementation that `auto` (or a name) stands for on this platform."""
        return "reference" if name == "auto" else name
