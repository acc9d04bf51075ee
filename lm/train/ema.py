"""An exponential moving average of the parameters, for evaluation (Polyak and Juditsky 1992)."""

from typing import Any

import jax
import jax.numpy as jnp


def initial(params: Any) -> Any:
    """Return the average before the first step: the parameters themselves, in f32."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)  # buffers of its own: both are donated


def updated(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Return `d * average + (1 - d) * params` in f32, with d = min(decay, (1 + step) / (10 + step)).

    Args:
      average: f32, shaped as the parameters.
      params: after the step.
      decay: of a long run; early on, d is smaller, so that the initialization is soon forgotten.
      step: optimizer steps done before this one.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + (1 - d) * (p.astype(jnp.float32) - a), average, params)
