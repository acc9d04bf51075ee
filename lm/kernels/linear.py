"""The one place where an activation meets a parameter."""

import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.kernels.float8 import backward_specs, float8_einsum
from lm.kernels.named import name_heads


def linear(x: jax.Array, kernel: jax.Array, spec: str, *, matmul: str = "default") -> jax.Array:
    """Return `einsum(spec, x, kernel)` with the kernel cast to the activation's type.

    Args:
      x: activation in the compute type.
      kernel: parameter in the parameter type (f32 master weights are cast here, once per use).
      spec: dimension letters, e.g. `BTD,DF->BTF`.
      matmul: `default`: in the compute type; `float8`: both rounded to 8 bits (`lm/kernels/float8.py`).

    Accumulates in f32 on every backend; so does the kernel's gradient. The result is named `linear`
    for remat policies.
    """
    out = float8_einsum(x, kernel, spec).astype(x.dtype) if matmul == "float8" else _matmul(x, kernel, spec)
    return name_heads(out, "linear") if out.ndim == 4 else checkpoint_name(out, "linear")


def in_compute_type(function: Callable, compute: str) -> Callable:
    """Return `function`, whose matmuls of f32 are f32's when traced with a compute type of float32.

    JAX's default is what a device does fastest: TPUs round the operands to bf16, and NVIDIA's to TF32.
    """

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with jax.default_matmul_precision("float32" if compute == "float32" else None):
            return function(*args, **kwargs)

    return traced


# Its own backward pass, because autodiff's multiplies the f32 cotangent of the accumulator with a bf16
# operand (no such matmul is fast), rounds the kernel's gradient to bf16, and keeps the cast kernel:
# one more copy of all parameters, where the kernel itself is there anyway.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, kernel, spec):
    return jnp.einsum(spec, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _matmul_fwd(x, kernel, spec):
    return _matmul(x, kernel, spec), (x, kernel)


def _matmul_bwd(spec, residuals, g):
    x, kernel = residuals
    of_x, of_kernel = backward_specs(spec)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    dx = dot(of_x, g, kernel.astype(x.dtype))
    dkernel = jax.lax.platform_dependent(
        x, g, cpu=partial(_small_operand_first, of_kernel), default=partial(dot, of_kernel)
    )
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


def _small_operand_first(spec, x, g):
    """Return `einsum(spec, x, g)` in f32, computed transposed where x is the larger.

    XLA's CPU backend copies a matmul's first operand where it is summed over its first axis: a third of the time of
    the feed-forward's second gradient. The barrier keeps the compiler from turning the product round again.
    """
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    if x.size <= g.size:
        return dot(spec, x, g)
    operands, out = spec.split("->")
    of_x, of_g = operands.split(",")
    turned = "".join(sorted(out, key=of_x.__contains__))  # the letters of g first
    return jnp.einsum(f"{turned}->{out}", jax.lax.optimization_barrier(dot(f"{of_g},{of_x}->{turned}", g, x)))


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
