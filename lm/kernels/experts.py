"""The feed-forward of a mixture of experts: every token through the experts that it was sent to.

Tokens are sorted by expert, so that each expert's matmuls run over its own tokens and nothing is
padded to a capacity (dropless: Gale et al. 2022). All of it is local to a device; `lm/parallel/`
wraps it in `shard_map`. With the experts spread over devices (`spread_experts`) tokens travel to them:

- dropless: every device gets all tokens of the devices that share the experts and computes what its own experts add
  to them; the sums are scattered back. It receives X - 1 times its own `B T D` each way, for X devices. Sending each
  token only where it goes (`jax.lax.ragged_all_to_all`) would need buffers as large for the worst case, and no
  backend but TPUs and GPUs has it.
- with a capacity: buffers of fixed size go to the experts and back (GShard, Lepikhin et al. 2021; Switch, Fedus et
  al. 2022), each way (X - 1) / X of `capacity * k B T D`.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    k, E = ids_BTk.shape[-1], kernels["up"].shape[0]
    routes = _routes(ids_BTk, E, capacity)
    x_RD = x_BTD.reshape(-1, x_BTD.shape[-1])[routes.order_R // k]
    y_RD = run(x_RD, _cast(kernels, x_BTD), routes.sizes_E, activation)
    return _combined(y_RD, routes, gates_BTk), routes.taken_E


def spread_experts(
    x_BTD: jax.Array,
    ids_BTk: jax.Array,
    gates_BTk: jax.Array,
    kernels: Mapping[str, jax.Array],
    *,
    activation: str,
    capacity: float | None = None,
    implementation: str = "ragged",
    axis: str,
) -> tuple[jax.Array, jax.Array]:
    """Return what `experts` returns, of experts in equal parts on the devices of a mesh axis that is local here.

    Args:
      kernels: this device's part of E.
      capacity: over the tokens of this device: the same ones are dropped as when it has all experts.
      implementation: of the dropless form; buffers of a capacity take dense matmuls.
      axis: the mesh axis.

    Returns:
      `y_BTD` in x's type, and int32 `taken_E`, of the tokens here and all experts.
    """
    num_own = kernels["up"].shape[0]
    E = num_own * jax.lax.axis_size(axis)
    routes = _routes(ids_BTk, E, capacity)
    if capacity is not None:
        return _exchanged(x_BTD, routes, gates_BTk, kernels, activation, axis), routes.taken_E
    x_BTD, ids_BTk, gates_BTk = (jax.lax.all_gather(a, axis, axis=0, tiled=True) for a in (x_BTD, ids_BTk, gates_BTk))
    own_BTk = ids_BTk - jax.lax.axis_index(axis) * num_own
    own_BTk = jnp.where((own_BTk >= 0) & (own_BTk < num_own), own_BTk, -1)
    y_BTD, _ = experts(x_BTD, own_BTk, gates_BTk, kernels, activation=activation, implementation=implementation)
    return jax.lax.psum_scatter(y_BTD, axis, scatter_dimension=0, tiled=True), routes.taken_E


def _exchanged(x_BTD, routes, gates_BTk, kernels, activation, axis):
    """Every expert's buffer of C tokens to its device, through the expert, and back."""
    k, E, C = gates_BTk.shape[-1], len(routes.sizes_E), routes.limit
    place_C = jnp.arange(C)
    row_EC = jnp.minimum(routes.first_E[:, None] + place_C[None, :], len(routes.order_R) - 1)
    is_filled_EC = place_C[None, :] < routes.taken_E[:, None]
    x_ECD = x_BTD.reshape(-1, x_BTD.shape[-1])[routes.order_R[row_EC] // k]
    x_ECD = jnp.where(is_filled_EC[:, :, None], x_ECD, 0)

    def matmul(x, kernel):
        return jnp.einsum("ecx,exy->ecy", x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)

    own = jax.lax.all_to_all(x_ECD, axis, split_axis=0, concat_axis=1, tiled=True)  # [E / X, X C, D]
    own = _feed_forward(own, _cast(kernels, x_BTD), activation, matmul)
    y_ECD = jax.lax.all_to_all(own, axis, split_axis=1, concat_axis=0, tiled=True)
    slot_R = jnp.minimum(routes.expert_R, E - 1) * C + jnp.minimum(routes.place_R, C - 1)
    return _combined(y_ECD.reshape(E * C, -1)[slot_R], routes, gates_BTk)


class _Routes(NamedTuple):
    """A row per (token, choice), sorted by expert; what goes nowhere counts as expert E and sorts last."""

    order_R: jax.Array  # the row's place in `[B, T, k]`
    expert_R: jax.Array
    place_R: jax.Array  # among its expert's
    kept_R: jax.Array  # goes somewhere and finds room there
    sizes_E: jax.Array
    first_E: jax.Array
    taken_E: jax.Array  # int32
    limit: int  # of rows per expert


def _routes(ids_BTk, E, capacity) -> _Routes:
    ids_R = jnp.where(ids_BTk < 0, E, ids_BTk).reshape(-1)
    order_R = jnp.argsort(ids_R, stable=True)
    sizes_E = jnp.bincount(ids_R, length=E)
    first_E = jnp.cumsum(sizes_E) - sizes_E
    expert_R = ids_R[order_R]
    place_R = jnp.arange(len(ids_R)) - first_E[jnp.minimum(expert_R, E - 1)]
    limit = len(ids_R) if capacity is None else math.ceil(capacity * len(ids_R) / E)
    kept_R = (expert_R < E) & (place_R < limit)
    taken_E = jnp.minimum(sizes_E, limit).astype(jnp.int32)
    return _Routes(order_R, expert_R, place_R, kept_R, sizes_E, first_E, taken_E, limit)


def _combined(y_RD, routes, gates_BTk):
    """Return each token's rows added up, weighted; those that were not kept count as zero."""
    gates_R = jnp.where(routes.kept_R, gates_BTk.reshape(-1)[routes.order_R], 0)
    y_RD = jnp.where(routes.kept_R[:, None], y_RD * gates_R[:, None].astype(y_RD.dtype), 0)
    return jnp.sum(y_RD[jnp.argsort(routes.order_R)].reshape(*gates_BTk.shape, -1), axis=2)


def _cast(kernels, like):
    return {name: kernel.astype(like.dtype) for name, kernel in kernels.items()}


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
