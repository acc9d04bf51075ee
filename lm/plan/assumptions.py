"""What the roofline assumes beside published hardware figures: all in one place, printed with every prediction.

Efficiencies are shares of the peak that a step's work reaches as a whole, norms and activations between the matmuls
included. Each family's is fitted to one published training run of MaxText (configs and README tables in its
repository, `lm/plan/published.py`); other runs of the same table were held out to see how far off it is.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of the peak FLOP/s."""

    matmul: float
    attention: float  # of the kernels, forward and backward
    source: str


EFFICIENCY: Mapping[str, Efficiency] = {
    "TPU v4": Efficiency(0.78, 0.40, "v5e's, for want of a run of its own with a known config"),
    "TPU v5 lite": Efficiency(0.78, 0.40, "MaxText 16B on v5e:16x16, 61.1 %"),
    "TPU v5": Efficiency(0.82, 0.40, "MaxText 64B on v5p:4x4x4, 70.3 %"),
    "TPU v6 lite": Efficiency(0.65, 0.26, "MaxText Llama 3.1 70B on v6e:16x16, 50.3 %"),
    "TPU7x": Efficiency(0.65, 0.26, "v6e's: the nearest generation with a published run"),
    "NVIDIA H100": Efficiency(0.49, 0.40, "MaxText Llama 2 7B on A3 (H100), 492 TFLOP/s"),
    "NVIDIA H200": Efficiency(0.49, 0.40, "H100's: the same cores"),
}

ATTENTION_BACKWARD = 2.5  # times the forward's FLOPs: 5 products where forward has 2 (Dao 2023)
ATTENTION_BLOCKWISE = 0.5  # of the kernels' efficiency, without a kernel: logits pass through the memory
MEMORY_EFFICIENCY = 0.8  # of the memory's bandwidth
LINK_EFFICIENCY = 0.9  # of a link's: "How to Scale Your Model" gives 9e10 of v5p's 1e11 B/s
ACTIVATION_PASSES = 4.0  # times that what a layer keeps goes through the memory: written, read, gradient out and in
EXPOSED = 0.1  # of a hidden transfer, even where there is compute enough to hide it: first and last layer

STATEMENTS = (
    "compute, memory traffic and hidden communication overlap fully but for a tenth of the latter; the longest of them "
    "binds, the rest is added",
    "ZeRO's gathers and scatters and the ring's keys hide behind compute; tensor, expert, Ulysses, embedding and "
    "once-per-step transfers do not",
    "a pipeline's bubble, (P - 1) / (M R + P - 1), idles everything",
    f"links reach {LINK_EFFICIENCY:.0%}, memory {MEMORY_EFFICIENCY:.0%} of their published bandwidth",
    "input, checkpoints, evaluation and stragglers cost nothing",
)


def efficiency(device_kind: str) -> Efficiency | None:
    """Return the efficiencies of a device kind, or None for a device that is not listed."""
    matches = [kind for kind in EFFICIENCY if device_kind.startswith(kind)]
    return EFFICIENCY[max(matches, key=len)] if matches else None
