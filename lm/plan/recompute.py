"""What of the forward pass a remat policy computes again, as shares of each part's own FLOPs."""

import dataclasses

from lm.config import ModelConfig, remat_names
from lm.kernels.activations import GATED


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """Shares between 0 and 1."""

    projections: float  # of queries, keys and values
    attention: float
    out: float  # attention's output projection
    feed_forward: float  # of all its matmuls; the last one is never needed again, but by a norm after it


def recomputed(model: ModelConfig) -> Recomputed:
    """Return what `config.model.remat` recomputes in the backward pass.

    A name that is kept or offloaded is not computed again, nor is what only it needs. Attention is kept by its output
    and its log-sum-exp; the feed-forward's last matmul gives the next layer's input, which is kept anyway.
    """
    if model.remat == "none":
        return Recomputed(0, 0, 0, 0)
    kept = {name for names in remat_names(model.remat) for name in names}
    sizes = {"query": model.num_heads, "key": model.num_kv_heads, "value": model.num_kv_heads}
    dots = "dots" in kept
    needed = [n for name, n in sizes.items() if name not in kept and not dots]
    inner = ("mlp_gate", "mlp_up") if model.activation in GATED else ("mlp_up",)
    after = model.norm_placement != "pre"  # the norm's backward pass takes the last matmul in
    parts = [*(name not in kept for name in inner), after]
    return Recomputed(
        projections=sum(needed) / sum(sizes.values()),
        attention=float("attention_out" not in kept),
        out=float(not dots and ("mlp_input" not in kept or after)),
        feed_forward=0.0 if dots else sum(parts) / len(parts),
    )
