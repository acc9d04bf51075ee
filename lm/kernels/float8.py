"""Matmuls in 8-bit floating point (Micikevicius et al. 2022), scaled per tensor.

Activations and weights are rounded to e4m3 (largest 448), incoming gradients to e5m2 (largest
57,344, for their wider range). Each tensor is first scaled so that its largest magnitude becomes
the type's largest, measured anew in every call; products accumulate in f32. The scales carry no
gradient (straight-through), and the backward pass reuses the rounded tensors, so that a saved
activation takes one byte.

`lm.capabilities` says where the hardware has such matmuls. Elsewhere XLA emulates them: the same
numbers, slower.
"""

from functools import partial

import jax
import jax.numpy as jnp

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2


def quantize(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Return (x / scale rounded to nearest in an 8-bit float type, scale), `scale` a scalar in f32.

    Infinities and NaN make the scale, and so the matmul, not finite: nothing is hidden.
    """
    largest = float(jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    top = jnp.max(jnp.abs(x))
    # An all-zero tensor, or one so small that the scale would be subnormal, keeps its scale at 1.
    scale = jnp.where(top / largest < float(jnp.finfo(jnp.float32).tiny), 1.0, top / largest)
    return (x / scale).astype(dtype), scale


def backward_specs(spec: str) -> tuple[str, str]:
    """Return the einsums of a matmul's gradients: (g, kernel -> dx) and (x, g -> dkernel).

    `BTD,DF->BTF` gives `BTF,DF->BTD` and `BTD,BTF->DF`.
    """
    operands, out = spec.split("->")
    left, right = operands.split(",")
    return f"{out},{right}->{left}", f"{left},{out}->{right}"


def dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Return `einsum(spec, a, b)` in f32 of arrays whose 8-bit types may differ (jnp.einsum refuses those)."""
    operands, out = spec.split("->")
    left, right = operands.split(",")
    summed = [c for c in left if c in right and c not in out]
    batch = [c for c in left if c in right and c in out]
    axes = lambda letters: (tuple(map(left.index, letters)), tuple(map(right.index, letters)))  # noqa: E731
    result = jax.lax.dot_general(a, b, (axes(summed), axes(batch)), preferred_element_type=jnp.float32)
    have = [*batch, *(c for c in left + right if c not in summed and c not in batch)]
    return jnp.transpose(result, [have.index(c) for c in out])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def float8_einsum(x: jax.Array, kernel: jax.Array, spec: str) -> jax.Array:
    """Return `einsum(spec, x, kernel)` in f32 from operands rounded to e4m3.

    Args:
      x: activation.
      kernel: parameter, of any floating type; its gradient has that type.
      spec: dimension letters, e.g. `BTD,DF->BTF`; each letter in two of the three, or a batch letter in all.
    """
    return _forward(x, kernel, spec)[0]


def _forward(x, kernel, spec):
    x8, x_scale = quantize(x, FORWARD)
    kernel8, kernel_scale = quantize(kernel, FORWARD)
    out = dot(spec, x8, kernel8) * (x_scale * kernel_scale)
    like = (jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype))
    return out, (x8, x_scale, kernel8, kernel_scale, like)


def _backward(spec, residuals, g):
    x8, x_scale, kernel8, kernel_scale, (x_like, kernel_like) = residuals
    of_x, of_kernel = backward_specs(spec)
    g8, g_scale = quantize(g, BACKWARD)
    dx = dot(of_x, g8, kernel8) * (g_scale * kernel_scale)
    dkernel = dot(of_kernel, x8, g8) * (x_scale * g_scale)
    return dx.astype(x_like.dtype), dkernel.astype(kernel_like.dtype)


float8_einsum.defvjp(_forward, _backward)
