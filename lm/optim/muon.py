"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalized by Newton-Schulz.

What a matrix is comes from the dimension letters: `LDNH` is L matrices of D x (N H). Array rank
would take the stacked norms for matrices and the split heads for tensors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.axes import letters, matrix_axes
from lm.tree import map_with_path

# Quintic x -> a x + b x^3 + c x^5, chosen for the steepest slope at 0 (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
    """Momentum, one array per matrix."""

    momentum: optax.Updates


def orthogonalize(g_Lio: jax.Array, iterations: int) -> jax.Array:
    """Return the nearest (semi-)orthogonal matrices, roughly: singular values end in about 0.7 to 1.2.

    Args:
      g_Lio: stack of matrices `[L, in, out]`, f32.
      iterations: Newton-Schulz steps; each is three matmuls.
    """
    tall = g_Lio.shape[1] > g_Lio.shape[2]
    x = jnp.swapaxes(g_Lio, 1, 2) if tall else g_Lio  # the Gram matrix is of the smaller side
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + 1e-7)
    a, b, c = _COEFFICIENTS

    def step(_, x):
        gram = jnp.einsum("Lio,Ljo->Lij", x, x)
        return a * x + jnp.einsum("Lij,Ljo->Lio", b * gram + c * jnp.einsum("Lij,Ljk->Lik", gram, gram), x)

    x = jax.lax.fori_loop(0, iterations, step, x)  # a loop compiles five times faster than five copies
    return jnp.swapaxes(x, 1, 2) if tall else x


def scale_by_muon(momentum: jax.Array | float, iterations: int) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized, scaled by 0.2 sqrt(max(in, out)) per matrix.

    The scale gives updates the root mean square of AdamW's, so that one learning rate serves
    both (Liu et al. 2025, "Muon is scalable for LLM training").

    Args:
      momentum: of the running average of gradients.
      iterations: Newton-Schulz steps.

    Raises:
      KeyError: a parameter that is not in `lm.axes.PARAMETERS`.
    """

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        del params
        average = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, grads)

        def one(path, m, g):
            split = matrix_axes(letters(path))
            fan_in, fan_out = (_product(g.shape, axes) for axes in split)
            nesterov = (momentum * m + (1 - momentum) * g).astype(jnp.float32)
            flat = orthogonalize(nesterov.reshape((-1, fan_in, fan_out)), iterations)
            return (0.2 * max(fan_in, fan_out) ** 0.5 * flat).reshape(g.shape).astype(g.dtype)

        return map_with_path(one, average, grads), MuonState(average)

    return optax.GradientTransformation(init, update)


def _product(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    out = 1
    for axis in axes:
        out *= shape[axis]
    return out
