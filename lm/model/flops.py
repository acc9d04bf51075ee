"""FLOPs and parameters from the shape alone. XLA's own count takes a scanned layer once, so it cannot serve."""

import math
from collections.abc import Mapping

from lm.axes import PARAMETERS, matrix_axes
from lm.config import ModelConfig
from lm.model.layers import sizes


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return path -> shape of every parameter that a config's model has; allocates nothing."""
    gated = config.activation in ("swiglu", "geglu")
    layer_bias = config.bias and config.norm == "layernorm"

    def present(path: str) -> bool:
        name = path.split("/")
        if path == "embed/positions/embedding":
            return config.positions == "learned"
        if path == "head/kernel":
            return not config.tie_embeddings
        if "gate" in name and not gated:
            return False
        if name[-2] == "value_embed":
            return config.value_embeddings
        if name[-2] in ("query_norm", "key_norm"):
            return config.qk_norm
        return layer_bias if name[-2].endswith("_norm") and name[-1] == "bias" else config.bias or name[-1] != "bias"

    size = sizes(config)
    return {path: tuple(size[c] for c in dims) for path, dims in PARAMETERS.items() if present(path)}


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Return `total` and `non_embedding` (without embeddings and an untied head) counts."""
    shapes = parameter_shapes(config)
    total = sum(map(math.prod, shapes.values()))
    outside = sum(
        math.prod(shape) for path, shape in shapes.items() if path.startswith("head/") or path.endswith("/embedding")
    )
    return {"total": total, "non_embedding": total - outside}


def flops_per_token(config: ModelConfig, length: int) -> Mapping[str, float]:
    """Return forward FLOPs per token by part: `attention_projections`, `attention`, `feed_forward`, `head`.

    A multiply-add is 2. Attention counts the keys that a query may see, on average over a row of
    `length` tokens: (length + 1) / 2 under a causal mask, fewer in a window. Norms, activations
    and lookups are not counted. A training step is three times the sum (Kaplan et al. 2020).
    """
    shapes = parameter_shapes(config)
    kernels = {path: math.prod(shape) for path, shape in shapes.items() if matrix_axes(PARAMETERS[path])}
    seen = [
        sum(min(t + 1, window or length) for t in range(length)) / length for window in config.window
    ]  # keys per query
    mean_seen = sum(seen) / len(seen)
    return {
        "attention_projections": 2 * sum(n for path, n in kernels.items() if "/attention/" in path),
        "attention": 4 * config.num_layers * config.num_heads * config.head_dim * mean_seen,
        "feed_forward": 2 * sum(n for path, n in kernels.items() if "/mlp/" in path),
        "head": 2 * config.d_model * config.vocab_size,
    }


def train_flops_per_token(config: ModelConfig, length: int) -> float:
    """Return a training step's FLOPs per token: forward and backward, nothing recomputed."""
    return 3 * sum(flops_per_token(config, length).values())
