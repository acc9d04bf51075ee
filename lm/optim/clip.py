"""Gradient clipping by norm (Pascanu et al. 2013)."""

import jax
import jax.numpy as jnp
import optax

from lm.axes import letters
from lm.optim.state import flatten
from lm.tree import map_with_path


def clip_by_norm(limit, kind: str) -> optax.GradientTransformation:
    """Scale gradients by min(1, limit / norm); a limit of infinity changes nothing.

    Args:
      limit: largest norm; may be a tracer.
      kind: `global`: one norm over all gradients. `block`: one norm per block, each held to `limit`: a block
        is one layer of the stack (all parameters with an L axis, at one index of it), and outside the
        stack each top-level group: `embed` (token and position tables), `final_norm`, `head`.
    """

    def global_clip(updates, _params):
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-12))
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates)

    def block_clip(updates, _params):
        squares = {}
        for path, g in flatten(updates).items():
            axes = tuple(range(_is_stacked(path), g.ndim))
            squares.setdefault(_block(path), []).append(jnp.sum(jnp.square(g.astype(jnp.float32)), axes))
        factors = {name: jnp.minimum(1.0, limit / (jnp.sqrt(sum(parts)) + 1e-12)) for name, parts in squares.items()}

        def scale(path, g):
            factor = factors[_block(path)]
            return (g * factor.reshape(factor.shape + (1,) * (g.ndim - factor.ndim))).astype(g.dtype)

        return map_with_path(scale, updates)

    return optax.stateless({"global": global_clip, "block": block_clip}[kind])


def _is_stacked(path: str) -> bool:
    return letters(path).startswith("L")


def _block(path: str) -> str:
    return "L" if _is_stacked(path) else path.split("/")[0]
