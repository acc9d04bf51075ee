"""Adafactor (Shazeer and Stern 2018): second moments of a matrix kept as one number per row and per column."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.axes import letters
from lm.optim.matrices import factored_axes
from lm.optim.state import flatten, unflatten
from lm.tree import map_with_path

_EPSILON = 1e-30  # added to squared gradients; the paper's epsilon_1


class AdafactorState(NamedTuple):
    """Statistics by parameter; each field holds the parameters that have it."""

    count: jax.Array
    row: Any  # mean square over a matrix's outputs; LDNH: [L, D, 1, 1]
    column: Any  # mean square over its inputs; LDNH: [L, 1, N, H]
    nu: Any  # second moment of norms and biases
    momentum: Any  # of the update, or nothing


def scale_by_adafactor(decay, clip, b1=None) -> optax.GradientTransformation:
    """Divide by the root of a factored second moment, then cut the update to a root mean square of `clip`.

    With R and C the running means of g^2 over a matrix's columns and rows, the second moment is
    R C / mean(R), and its b2 at step t is 1 - t^-decay. Kernels are factored into inputs and
    outputs, embeddings into ids and features; each layer is factored and clipped alone. The
    step size is the caller's: the paper's relative step and parameter scale are off.

    Args:
      decay: exponent of the decay schedule (0.8 in the paper).
      clip: largest root mean square of a layer's update (1.0 in the paper).
      b1: of a running average of the updates; None keeps none, and the state is sublinear in size.
    """

    def init(params):
        row, column, nu = {}, {}, {}
        for path, p in flatten(params).items():
            axes = factored_axes(letters(path))
            if axes is None:
                nu[path] = jnp.zeros_like(p)
            else:
                row[path] = jnp.zeros(_reduced(p.shape, axes.outputs), p.dtype)
                column[path] = jnp.zeros(_reduced(p.shape, axes.inputs), p.dtype)
        momentum = optax.EmptyState() if b1 is None else jax.tree.map(jnp.zeros_like, params)
        return AdafactorState(jnp.zeros((), jnp.int32), unflatten(row), unflatten(column), unflatten(nu), momentum)

    def update(grads, state, params=None):
        del params
        count = state.count + 1
        b2 = 1 - count.astype(jnp.float32) ** -decay
        rows, columns, nus = (flatten(tree) for tree in (state.row, state.column, state.nu))

        def one(path, g):
            dims, square = letters(path), g * g + _EPSILON
            axes = factored_axes(dims)
            if axes is None:
                nus[path] = b2 * nus[path] + (1 - b2) * square
                u = g * jax.lax.rsqrt(nus[path])
            else:
                rows[path] = b2 * rows[path] + (1 - b2) * jnp.mean(square, axes.outputs, keepdims=True)
                columns[path] = b2 * columns[path] + (1 - b2) * jnp.mean(square, axes.inputs, keepdims=True)
                mean = jnp.mean(rows[path], axes.inputs, keepdims=True)
                # Two roots, not the root of a product: that underflows where both are small.
                u = g * jax.lax.rsqrt(rows[path] / mean) * jax.lax.rsqrt(columns[path])
            layer = tuple(range(dims.startswith("L"), g.ndim))
            return u / jnp.maximum(1.0, jnp.sqrt(jnp.mean(u * u, layer, keepdims=True)) / clip)

        updates, momentum = map_with_path(one, grads), state.momentum
        if b1 is not None:
            updates = momentum = jax.tree.map(lambda m, u: b1 * m + (1 - b1) * u, momentum, updates)
        return updates, AdafactorState(count, unflatten(rows), unflatten(columns), unflatten(nus), momentum)

    return optax.GradientTransformation(init, update)


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
