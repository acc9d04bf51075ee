"""The one place where an activation meets a parameter."""

import jax
import jax.numpy as jnp

from lm.kernels.float8 import float8_einsum


def linear(x: jax.Array, kernel: jax.Array, spec: str, *, matmul: str = "default") -> jax.Array:
    """Return `einsum(spec, x, kernel)` with the kernel cast to the activation's type.

    Args:
      x: activation in the compute type.
      kernel: parameter in the parameter type (f32 master weights are cast here, once per use).
      spec: dimension letters, e.g. `BTD,DF->BTF`.
      matmul: `default`: in the compute type; `float8`: both rounded to 8 bits (`lm/kernels/float8.py`).

    Accumulates in f32 on every backend.
    """
    if matmul == "float8":
        return float8_einsum(x, kernel, spec).astype(x.dtype)
    out = jnp.einsum(spec, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)
