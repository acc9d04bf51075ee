"""The feed-forward of a mixture of experts: every token through the experts that it was sent to.

Tokens are sorted by expert, so that each expert's matmuls run over its own tokens and nothing is
padded to a capacity (dropless: Gale et al. 2022). All of it is local to a device; `lm/parallel/`
wraps it in `shard_map`.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lm.kernels.activations import activate

_BLOCK = 64  # rows of one expert that `blocked` multiplies at a time


def experts(
    x_BTD: jax.Array,
    ids_BTk: jax.Array,
    gates_BTk: jax.Array,
    kernels: Mapping[str, jax.Array],
    *,
    activation: str,
    capacity: float | None = None,
    implementation: str = "ragged",
) -> tuple[jax.Array, jax.Array]:
    """Return `sum_j gates[..., j] * feed_forward_{ids[..., j]}(x)`, and how many tokens each expert took.

    Args:
      x_BTD: activations in the compute type.
      ids_BTk: int32, the k experts of each token; -1 sends it nowhere (padding).
      gates_BTk: f32 weight of each.
      kernels: `up` and `down`, for gated activations also `gate`: `EDF`, `EFD`, `EDF` in the parameter type.
      activation: see `lm.kernels.activations.activate`.
      capacity: an expert takes at most this times its even share of the tokens that arrive here,
        the first ones; the others pass it by. None: all.
      implementation: `ragged` is `jax.lax.ragged_dot`; `blocked` loops over blocks of one expert's
        tokens, for backends that compute `ragged_dot` densely.

    Returns:
      `y_BTD` in x's type, and int32 `taken_E`.

    Raises:
      ValueError: an unknown implementation.
    """
    run = {"ragged": _ragged, "blocked": _blocked}.get(implementation)
    if run is None:
        raise ValueError(f"experts implementation {implementation!r} is unknown; use ragged or blocked")
    B, T, D = x_BTD.shape
    k, E = ids_BTk.shape[-1], kernels["up"].shape[0]
    # A row per (token, choice), sorted by expert; what goes nowhere counts as expert E and sorts last.
    ids_R = jnp.where(ids_BTk < 0, E, ids_BTk).reshape(-1)
    order_R = jnp.argsort(ids_R, stable=True)
    sizes_E = jnp.bincount(ids_R, length=E)
    x_RD = x_BTD.reshape(B * T, D)[order_R // k]

    expert_R = ids_R[order_R]
    place_R = jnp.arange(len(ids_R)) - (jnp.cumsum(sizes_E) - sizes_E)[jnp.minimum(expert_R, E - 1)]
    limit = len(ids_R) if capacity is None else math.ceil(capacity * len(ids_R) / E)
    kept_R = (expert_R < E) & (place_R < limit)
    gates_R = jnp.where(kept_R, gates_BTk.reshape(-1)[order_R], 0)

    cast = {name: kernel.astype(x_BTD.dtype) for name, kernel in kernels.items()}
    y_RD = run(x_RD, cast, sizes_E, activation)
    y_RD = jnp.where(kept_R[:, None], y_RD * gates_R[:, None].astype(y_RD.dtype), 0)
    y_BTD = jnp.sum(y_RD[jnp.argsort(order_R)].reshape(B, T, k, D), axis=2)
    return y_BTD, jnp.minimum(sizes_E, limit).astype(jnp.int32)


def _feed_forward(x, kernels: Mapping[str, jax.Array], activation: str, matmul: Callable) -> jax.Array:
    gate = matmul(x, kernels["gate"]) if "gate" in kernels else None
    return matmul(activate(activation, matmul(x, kernels["up"]), gate), kernels["down"])


def _ragged(x_RD, kernels, sizes_E, activation):
    def matmul(x, kernel):
        return jax.lax.ragged_dot(x, kernel, sizes_E, preferred_element_type=jnp.float32).astype(x.dtype)

    return _feed_forward(x_RD, kernels, activation, matmul)


def _blocked(x_RD, kernels, sizes_E, activation):
    R, E = len(x_RD), len(sizes_E)
    num_blocks = R // _BLOCK + E  # every expert's rows are rounded up to whole blocks
    blocks_E = (sizes_E + _BLOCK - 1) // _BLOCK
    first_row_E, first_block_E = jnp.cumsum(sizes_E) - sizes_E, jnp.cumsum(blocks_E) - blocks_E
    block_n = jnp.arange(num_blocks)
    expert_n = jnp.minimum(jnp.searchsorted(jnp.cumsum(blocks_E), block_n, side="right"), E - 1)
    start_n = first_row_E[expert_n] + (block_n - first_block_E[expert_n]) * _BLOCK
    row_nb = jnp.minimum(start_n[:, None] + jnp.arange(_BLOCK)[None, :], R - 1)

    def one_block(xs):
        x_bD, expert = xs
        own = {name: kernel[expert] for name, kernel in kernels.items()}
        matmul = lambda x, kernel: jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)  # noqa: E731
        return _feed_forward(x_bD, own, activation, matmul)

    y_nbD = jax.lax.map(one_block, (x_RD[row_nb], expert_n))
    # Rows of a block that belong to the next expert were computed in vain: each row is read from its own block.
    row_R = jnp.arange(R)
    expert_R = jnp.minimum(jnp.searchsorted(jnp.cumsum(sizes_E), row_R, side="right"), E - 1)
    slot_R = first_block_E[expert_R] * _BLOCK + row_R - first_row_E[expert_R]
    return y_nbD.reshape(num_blocks * _BLOCK, -1)[jnp.minimum(slot_R, num_blocks * _BLOCK - 1)]
