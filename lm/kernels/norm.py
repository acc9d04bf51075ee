"""RMSNorm and LayerNorm, computed in f32 whatever the type."""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, centred: bool, epsilon: float) -> jax.Array:
    """Return `x / sqrt(mean(x^2) + epsilon) * scale + bias` over the last axis, in x's type.

    Args:
      x: activation `[..., D]`.
      scale, bias: f32 `[D]`; no bias: None.
      centred: subtract the mean first: LayerNorm (Ba et al. 2016); else RMSNorm (Zhang and Sennrich 2019).
      epsilon: added to the variance.

    The backward pass keeps x alone: autodiff would keep two f32 arrays of its shape.
    """
    row = (1,) * (x.ndim - 1) + (-1,)
    y = x.astype(jnp.float32)
    if centred:
        y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon) * scale.reshape(row)
    if bias is not None:
        y = y + bias.reshape(row)
    return y.astype(x.dtype)


def _norm_fwd(x, scale, bias, centred, epsilon):
    return norm(x, scale, bias, centred, epsilon), (x, scale, bias)


def _norm_bwd(centred, epsilon, residuals, g):
    _, vjp = jax.vjp(lambda *inputs: norm.fun(*inputs, centred, epsilon), *residuals)
    return vjp(g)


norm.defvjp(_norm_fwd, _norm_bwd)
