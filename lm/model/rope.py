"""Rotary position embedding (Su et al. 2021) and the ways to extend its context.

With `f_i = base^(-2i/H)` for pair i, `n_i = original_length * f_i / 2 pi` the turns that it makes in
the original context and `s` the extension factor, the scaled frequency is

- `linear` (Chen et al. 2023): `f_i / s`, positions interpolated.
- `llama3` (Llama 3.1): pairs below `bounds[0]` turns get `f_i / s`, those above `bounds[1]` keep
  `f_i`, and between them the two are mixed linearly in `n_i`.
- `yarn` (Peng et al. 2023): the same idea, mixed linearly in the pair's number between the (rounded)
  pairs that make `bounds[1]` and `bounds[0]` turns; cos and sin are also multiplied by
  `0.1 ln(s) + 1`, which sharpens attention.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig

Rope = tuple[jax.Array, jax.Array]  # (cos, sin), [B, T, 1, H/2] in f32


def frequencies(config: ModelConfig, base: float, factor: float) -> tuple[np.ndarray, float]:
    """Return (angle per position of each pair `[H/2]`, factor of cos and sin)."""
    pairs = np.arange(config.head_dim // 2)
    f = base ** (-2 * pairs / config.head_dim)
    if config.rope_scaling == "none" or factor == 1:
        return f, 1.0
    if config.rope_scaling == "linear":
        return f / factor, 1.0
    length = config.rope_original_length
    if config.rope_scaling == "llama3":
        low, high = config.rope_llama3_bounds
        kept = np.clip((length * f / (2 * math.pi) - low) / (high - low), 0, 1)
        return (1 - kept) * f / factor + kept * f, 1.0
    low, high = config.rope_yarn_bounds
    pair_of = lambda turns: config.head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))  # noqa: E731
    first, last = max(math.floor(pair_of(high)), 0), min(math.ceil(pair_of(low)), config.head_dim - 1)
    kept = 1 - np.clip((pairs - first) / max(last - first, 1e-3), 0, 1)
    return (1 - kept) * f / factor + kept * f, 0.1 * math.log(factor) + 1


def rope_table(config: ModelConfig, positions_BT: jax.Array, base: float | None, factor: float) -> Rope | None:
    """Return the rotation of each position for a layer with this base and factor; None: it does not rotate."""
    if config.positions != "rope" or base is None:
        return None
    angle, scale = frequencies(config, base, factor)
    angle_BT1H = positions_BT.astype(jnp.float32)[:, :, None, None] * angle.astype(np.float32).reshape(1, 1, 1, -1)
    return jnp.cos(angle_BT1H) * scale, jnp.sin(angle_BT1H) * scale


def apply_rope(x_BTNH: jax.Array, rope: Rope) -> jax.Array:
    """Rotate the pairs (x[i], x[i + H/2]): the half-split layout of Llama and GPT-NeoX."""
    cos, sin = rope
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)
