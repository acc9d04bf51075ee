"""The loop over layers of ZeRO 3: each layer's parameters are gathered while the layer before it computes.

Autodiff of a loop that carries gathered parameters would keep them all for the backward pass. This loop has its own:
it keeps what the layers keep (their remat policy), without the parameters, which the backward pass gathers again, one
layer ahead too. For L layers that is 2 L + 1 gathers and L scatters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.parallel.pullback import Pullback


def prefetched_scan(
    body: Callable, x: jax.Array, params: Any, xs: Any, side: Any, *, unroll: int, gather: Callable, scatter: Callable
) -> tuple[jax.Array, Any]:
    """Return `(x, ys)` of `x, y = body(x, gather(params), xs, side)` in a loop over the leading axis of params and xs.

    Args:
      body: differentiable in x and its parameters.
      x: the carry.
      params: sharded, stacked on a leading axis; differentiable.
      xs, side: integers, or arrays without a gradient; `side` is the same in every turn.
      unroll: not used: a turn holds two layers' parameters already.
      gather: one turn's whole parameters from its shards.
      scatter: `scatter(gradients of whole parameters, shards)`, the shards' gradients.
    """
    del unroll
    length = len(jax.tree.leaves(params)[0])

    def turn(params, number):
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), params)

    def forward(x, params, xs, side):
        def step(carry, inputs):
            x, whole = carry
            number, own = inputs
            # The last turn gathers its own again, for the backward pass to start with.
            ahead = gather(turn(params, jnp.minimum(number + 1, length - 1)))
            out, pullback = jax.vjp(lambda x, whole: body(x, whole, own, side), x, whole)
            x, y = out
            return (x, ahead), (y, Pullback.without(pullback, (whole, own, side)))

        (x, last), (ys, pullbacks) = jax.lax.scan(step, (x, gather(turn(params, 0))), (jnp.arange(length), xs))
        return (x, ys), (last, pullbacks, params, xs, side)

    @jax.custom_vjp
    def run(x, params, xs, side):
        return forward(x, params, xs, side)[0]

    def backward(residuals, cotangents):
        last, pullbacks, params, xs, side = residuals
        dx, dys = cotangents

        def step(carry, inputs):
            dx, whole = carry
            number, own, pullback, dy = inputs
            behind = gather(turn(params, jnp.maximum(number - 1, 0)))
            dx, dwhole = pullback.restored((whole, own, side))((dx, dy))
            return (dx, behind), scatter(dwhole, turn(params, number))

        (dx, _), dparams = jax.lax.scan(step, (dx, last), (jnp.arange(length), xs, pullbacks, dys), reverse=True)
        return dx, dparams, None, None

    run.defvjp(forward, backward)
    return run(x, params, xs, side)
