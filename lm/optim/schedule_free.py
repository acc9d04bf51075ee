"""Schedule-free learning (Defazio et al. 2024): an average of the iterates in place of a decaying rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ScheduleFreeState(NamedTuple):
    """Beside the parameters, which are the average x."""

    z: Any  # the iterates that the updates move
    weight_sum: jax.Array  # of the squared learning rates
    max_rate: jax.Array
    inner: Any


def schedule_free(
    transform: optax.GradientTransformation, learning_rate, b1
) -> tuple[optax.GradientTransformation, Callable[[Any, Any], Any]]:
    """Let a transform move z, and the parameters x be z's average.

    Step t: y = (1 - b1) z + b1 x; the gradient, the transform and its weight decay are taken at y;
    z moves by the transform's update; x moves towards z by a share c = r^2 / (sum of r^2 so far),
    where r is the largest learning rate so far (as in the authors' code: equal weights after the
    warmup). The parameters are x, the point to evaluate, at every step.

    Args:
      transform: gives z's whole update, learning rate and sign included; without momentum.
      learning_rate: of this step, before any multiplier.
      b1: where between z (0) and x (1) gradients are taken.

    Returns:
      The transformation of x, and `training_params(x, state)`, which is y.
    """

    def training_params(params, state):
        return jax.tree.map(lambda x, z: (1 - b1) * z + b1 * x, params, state.z)

    def init(params):
        zero = jnp.zeros((), jnp.float32)
        return ScheduleFreeState(jax.tree.map(jnp.copy, params), zero, zero, transform.init(params))

    def update(grads, state, params):
        moves, inner = transform.update(grads, state.inner, training_params(params, state))
        z = jax.tree.map(jnp.add, state.z, moves)
        max_rate = jnp.maximum(state.max_rate, learning_rate)
        weight_sum = state.weight_sum + max_rate**2
        share = jnp.where(weight_sum > 0, max_rate**2 / jnp.where(weight_sum > 0, weight_sum, 1), 0)
        updates = jax.tree.map(lambda x, z: share * (z - x), params, z)
        return updates, ScheduleFreeState(z, weight_sum, max_rate, inner)

    return optax.GradientTransformation(init, update), training_params
