"""The one place where an activation meets a parameter."""

import jax
import jax.numpy as jnp


def linear(x: jax.Array, kernel: jax.Array, spec: str) -> jax.Array:
    """Return `einsum(spec, x, kernel)` with the kernel cast to the activation's type.

    Args:
      x: activation in the compute type.
      kernel: parameter in the parameter type (f32 master weights are cast here, once per use).
      spec: dimension letters, e.g. `BTD,DF->BTF`.

    Accumulates in f32 on every backend.
    """
    out = jnp.einsum(spec, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)
