"""Adding f32 updates to bf16 weights with stochastic rounding (Gupta et al. 2015; Zamirai et al. 2020).

Rounded to nearest, an update below 1/512 of its weight is lost every time. Rounded up or down with
the right odds it survives in expectation.
"""

from typing import Any

import jax
import jax.numpy as jnp


def apply_updates(params: Any, updates: Any, key: jax.Array) -> Any:
    """Return `params + updates`, added in f32 and rounded stochastically to bf16.

    Args:
      params: bf16 leaves.
      updates: f32 leaves.
      key: of this step; each leaf folds its number in.
    """
    leaves, structure = jax.tree.flatten(params)
    sums = [p.astype(jnp.float32) + u for p, u in zip(leaves, jax.tree.leaves(updates), strict=True)]
    return structure.unflatten(stochastic_round(x, jax.random.fold_in(key, i)) for i, x in enumerate(sums))


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return f32 as bf16, whose expected value is `x`; what bf16 can hold exactly stays as it is.

    bf16 is the upper half of f32's bits, so a random number below 2^16 is added to the magnitude and
    the lower half is cut off. Beyond the largest bf16 the magnitude is cut to it, never to infinity.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = _upper_half(bits + noise)
    rounded = jnp.where(jnp.isfinite(rounded), rounded, _upper_half(bits))
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _upper_half(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
