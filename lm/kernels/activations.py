"""The feed-forward's nonlinearity."""

from functools import partial

import jax
import jax.numpy as jnp

GATED = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}  # Shazeer 2020


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(kind: str, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Return the hidden units of a feed-forward.

    Args:
      kind: `swiglu`, `geglu` (with the tanh form of GELU), `gelu` (GPT-2's tanh form) or `relu2` (So et al. 2021).
      up: `x W_up`, any shape.
      gate: `x W_gate`, for the gated kinds.

    The backward pass keeps `up` and `gate` alone: autodiff would keep what lies between as well.
    """
    if kind in GATED:
        return GATED[kind](gate) * up
    return jax.nn.gelu(up) if kind == "gelu" else jnp.square(jax.nn.relu(up))


def _activate_fwd(kind, up, gate=None):
    return activate(kind, up, gate), (up, gate)


def _activate_bwd(kind, inputs, g):
    _, vjp = jax.vjp(partial(activate.fun, kind), *inputs)
    return vjp(g)


activate.defvjp(_activate_fwd, _activate_bwd)
