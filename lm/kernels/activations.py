"""The feed-forward's nonlinearity."""

import jax
import jax.numpy as jnp

GATED = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}  # Shazeer 2020


def activate(kind: str, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Return the hidden units of a feed-forward.

    Args:
      kind: `swiglu`, `geglu` (with the tanh form of GELU), `gelu` (GPT-2's tanh form) or `relu2` (So et al. 2021).
      up: `x W_up`, any shape.
      gate: `x W_gate`, for the gated kinds.
    """
    if kind in GATED:
        return GATED[kind](gate) * up
    return jax.nn.gelu(up) if kind == "gelu" else jnp.square(jax.nn.relu(up))
