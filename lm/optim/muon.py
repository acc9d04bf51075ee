"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalized by Newton-Schulz steps.

What a matrix is comes from the dimension letters: `LDNH` is L matrices of D x (N H). Array rank
would take the stacked norms for matrices and the split heads for tensors.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.axes import letters, matrix_axes
from lm.tree import map_with_path

# Polar Express (Amsel et al. 2025): step i maps singular values x -> a x + b x^3 + c x^5, the best
# quintic for the interval that step i - 1 leaves, from [0.001, 1] on. The last row is the fixed point's.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
_SAFETY = 1.01  # keeps rounding errors inside the interval of convergence


class MuonState(NamedTuple):
    """Momentum, one array per matrix."""

    momentum: optax.Updates


def coefficients(iterations: int) -> list[tuple[float, float, float]]:
    """Return (a, b, c) of each Newton-Schulz step."""
    rows = [_POLAR_EXPRESS[min(i, len(_POLAR_EXPRESS) - 1)] for i in range(iterations)]
    return [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in rows]


def orthogonalize(g_Lio: jax.Array, iterations: int) -> jax.Array:
    """Return the nearest (semi-)orthogonal matrices, roughly: five steps bring singular values to about 1.

    Args:
      g_Lio: stack of matrices `[L, in, out]`, f32.
      iterations: Newton-Schulz steps; each is three matmuls.
    """
    tall = g_Lio.shape[1] > g_Lio.shape[2]
    x = jnp.swapaxes(g_Lio, 1, 2) if tall else g_Lio  # the Gram matrix is of the smaller side
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + 1e-7)

    def step(x, abc):
        a, b, c = abc
        gram = jnp.einsum("Lio,Ljo->Lij", x, x)
        return a * x + jnp.einsum("Lij,Ljo->Lio", b * gram + c * jnp.einsum("Lij,Ljk->Lik", gram, gram), x), None

    x, _ = jax.lax.scan(step, x, jnp.array(coefficients(iterations), jnp.float32))
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
            fan_in, fan_out = (math.prod(g.shape[axis] for axis in axes) for axes in split)
            nesterov = (momentum * m + (1 - momentum) * g).astype(jnp.float32)
            flat = orthogonalize(nesterov.reshape((-1, fan_in, fan_out)), iterations)
            return (0.2 * max(fan_in, fan_out) ** 0.5 * flat).reshape(g.shape).astype(g.dtype)

        return map_with_path(one, average, grads), MuonState(average)

    return optax.GradientTransformation(init, update)
