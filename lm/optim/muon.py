"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalized by Newton-Schulz steps.

What a matrix is comes from the dimension letters: `LDNH` is L matrices of D x (N H). Array rank
would take the stacked norms for matrices and the split heads for tensors.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.axes import letters
from lm.optim.matrices import from_matrices, kernel_axes, sides, to_matrices
from lm.optim.state import flatten, unflatten
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
    """Momentum, one array per kernel, and NorMuon's statistics."""

    momentum: optax.Updates
    neurons: Any  # mean square over a matrix's inputs, one number per output; or nothing


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


def scale_factor(scale: str, fan_in: int, fan_out: int) -> float:
    """Return what an orthogonal matrix `[in, out]` is multiplied by.

    - `adam_rms`: 0.2 sqrt(max(in, out)), the root mean square of AdamW's updates, so that one
      learning rate serves both (Liu et al. 2025, "Muon is scalable for LLM training").
    - `spectral`: sqrt(out / in), so that an update changes the root mean square of a layer's
      output by the same amount at any width (Yang, Simon and Bernstein 2023; Bernstein 2025). muP's form.
    - `max_ratio`: sqrt(max(1, out / in)) (Jordan et al. 2024).
    """
    return {
        "adam_rms": 0.2 * max(fan_in, fan_out) ** 0.5,
        "spectral": (fan_out / fan_in) ** 0.5,
        "max_ratio": max(1.0, fan_out / fan_in) ** 0.5,
    }[scale]


def scale_by_muon(
    momentum: jax.Array | float,
    iterations: int,
    *,
    scale: str = "adam_rms",
    split_heads: bool = False,
    neuron_b2: jax.Array | float | None = None,
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized and scaled per matrix; for kernels only.

    Args:
      momentum: of the running average of gradients.
      iterations: Newton-Schulz steps.
      scale: see `scale_factor`.
      split_heads: orthogonalize each head's `D x H` and `H x D` instead of all heads as one matrix.
      neuron_b2: NorMuon (Li et al. 2025): divide by the root of a running mean square of each output
        neuron, then restore the matrix's Frobenius norm; None: plain Muon.

    Raises:
      KeyError: a parameter that is not in `lm.axes.PARAMETERS`.
    """

    def axes_of(path: str):
        return kernel_axes(letters(path), split_heads=split_heads)

    def init(params):
        neurons = {}
        if neuron_b2 is not None:
            for path, p in flatten(params).items():
                neurons[path] = jnp.zeros_like(jnp.mean(p, axes_of(path).inputs, keepdims=True))
        return MuonState(jax.tree.map(jnp.zeros_like, params), unflatten(neurons))

    def update(grads, state, params=None):
        del params
        average = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, grads)
        neurons = flatten(state.neurons)

        def one(path, m, g):
            axes = axes_of(path)
            nesterov = (momentum * m + (1 - momentum) * g).astype(jnp.float32)
            u = from_matrices(orthogonalize(to_matrices(nesterov, axes), iterations), g.shape, axes)
            if neuron_b2 is not None:
                before = _norm(u, axes)
                mean = jnp.mean(u * u, axes.inputs, keepdims=True)
                neurons[path] = neuron_b2 * neurons[path] + (1 - neuron_b2) * mean
                u = u / (jnp.sqrt(neurons[path]) + 1e-10)
                u = u * before / (_norm(u, axes) + 1e-10)
            return (scale_factor(scale, *sides(g.shape, axes)) * u).astype(g.dtype)

        return map_with_path(one, average, grads), MuonState(average, unflatten(neurons))

    return optax.GradientTransformation(init, update)


def _norm(x: jax.Array, axes) -> jax.Array:
    """Frobenius norm of each matrix."""
    return jnp.sqrt(jnp.sum(x * x, axes.inputs + axes.outputs, keepdims=True))
