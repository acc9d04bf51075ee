"""What an attention is asked for, and who sees whom: the one definition that every backend follows."""

import dataclasses

import jax
import jax.numpy as jnp

# In place of a masked logit, and the log-sum-exp of a query that sees no key. Finite, so that differences of two of
# them are 0 and not NaN, and so low that exp(MASKED - x) is 0 for the log-sum-exp x of any query that sees a key.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is known while tracing; the fields are those of `flash_attention`."""

    causal: bool
    window: int | None
    softcap: float | None
    scale: float
    device_kind: str | None = None


def visible(options: Options, q_positions: jax.Array, k_positions: jax.Array) -> jax.Array:
    """Return whether queries at `q_positions` see keys at `k_positions`, segments aside; shapes broadcast."""
    seen = jnp.ones(jnp.broadcast_shapes(q_positions.shape, k_positions.shape), bool)
    if options.causal or options.window is not None:
        seen &= k_positions <= q_positions
    if options.window is not None:
        seen &= k_positions > q_positions - options.window
    return seen
