"""Parameters and FLOPs of a config, nothing allocated.

XLA's own count takes a scanned layer once, so it cannot serve.
"""

import functools
import math
from collections.abc import Mapping

import jax

from lm.axes import PARAMETERS, matrix_axes
from lm.config import ModelConfig
from lm.model.transformer import Transformer
from lm.tree import map_with_path


@functools.lru_cache(maxsize=32)
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return path -> shape of every parameter of a config's model."""
    shapes = {}
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    map_with_path(lambda path, leaf: shapes.__setitem__(path, leaf.shape), params)
    return shapes


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Return counts: `total`, `non_embedding` (without embeddings and an untied head), `active` per token.

    A mixture's token goes through `experts_per_token` of its experts only.
    """
    counts = {path: math.prod(shape) for path, shape in parameter_shapes(config).items()}
    total = sum(counts.values())
    outside = sum(n for path, n in counts.items() if path.startswith("head/") or path.endswith("/embedding"))
    idle = sum(n * (1 - _used(config, path)) for path, n in counts.items())
    return {"total": total, "non_embedding": total - outside, "active": round(total - idle)}


def flops_per_token(config: ModelConfig, length: int) -> Mapping[str, float]:
    """Return forward FLOPs per token by part: `attention_projections`, `attention`, `feed_forward`, `head`.

    A multiply-add is 2. Attention counts the keys that a query may see, on average over a row of
    `length` tokens: (length + 1) / 2 under a causal mask, fewer in a window. Of a mixture the experts
    that a token goes to and the router count. Norms, activations and lookups are not counted. A
    training step is three times the sum (Kaplan et al. 2020).
    """
    kernels = {
        path: math.prod(shape) * _used(config, path)
        for path, shape in parameter_shapes(config).items()
        if matrix_axes(PARAMETERS[path])
    }
    seen = {w: _keys(length, min(w or length, length)) / length for w in set(config.window)}
    seen_by_all = sum(seen[config.per_layer("window", i)] for i in range(config.num_layers))
    return {
        "attention_projections": 2 * sum(n for path, n in kernels.items() if "/attention/" in path),
        "attention": 4 * config.num_heads * config.head_dim * seen_by_all,
        "feed_forward": 2 * sum(n for path, n in kernels.items() if "/mlp/" in path or "/experts/" in path),
        "head": 2 * config.d_model * config.vocab_size,
    }


def _keys(length: int, window: int) -> int:
    """Return the sum over t < length of min(t + 1, window)."""
    return window * (window + 1) // 2 + (length - window) * window


def train_flops_per_token(config: ModelConfig, length: int) -> float:
    """Return a training step's FLOPs per token: forward and backward, nothing recomputed."""
    return 3 * sum(flops_per_token(config, length).values())


def _used(config: ModelConfig, path: str) -> float:
    """Return the share of a parameter that one token uses."""
    return config.experts_per_token / config.num_experts if "E" in PARAMETERS[path][:2] else 1.0
