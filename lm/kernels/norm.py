"""RMSNorm and LayerNorm, computed in f32 whatever the type."""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, centred: bool, epsilon: float, scale_offset: float = 0.0
) -> jax.Array:
    """Return `x / sqrt(mean(x^2) + epsilon) * (scale + scale_offset) + bias` over the last axis, in x's type.

    Args:
      x: activation `[..., D]`.
      scale, bias: f32 `[D]`; no bias: None.
      centred: subtract the mean first: LayerNorm (Ba et al. 2016); else RMSNorm (Zhang and Sennrich 2019).
      epsilon: added to the variance.
      scale_offset: 1 where the scale is kept as its distance from 1 (Gemma).

    The backward pass keeps x alone: autodiff would keep two f32 arrays of its shape.
    """
    row = (1,) * (x.ndim - 1) + (-1,)
    y = x.astype(jnp.float32)
    if centred:
        y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
    y = y * (scale + scale_offset).reshape(row)
    if bias is not None:
        y = y + bias.reshape(row)
    return y.astype(x.dtype)


def _norm_fwd(x, scale, bias, *settings):
    return norm(x, scale, bias, *settings), (x, scale, bias)


def _norm_bwd(centred, epsilon, scale_offset, residuals, g):
    _, vjp = jax.vjp(lambda *inputs: norm.fun(*inputs, centred, epsilon, scale_offset), *residuals)
    return vjp(g)


norm.defvjp(_norm_fwd, _norm_bwd)
