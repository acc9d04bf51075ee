"""The model laid over a mesh by the compiler: for generation, whose rows, lengths and caches are of any size.

What the compiler cannot divide is a region: a kernel not at all, and a loop over rows, or a sort of tokens, would
gather them on every device. Training and evaluation run in `lm.parallel.local`.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.axes import ACTIVATION_AXES, partition
from lm.kernels.experts import experts
from lm.kernels.flash_attention import flash_attention
from lm.kernels.lookup import lookup
from lm.model.layout import Layout
from lm.parallel.mesh import named_sharding, replicated
from lm.parallel.region import region


def auto_layout(mesh: Mesh) -> Layout:
    """Return the layout of a model whose arrays are whole, and sharded by the tables of `lm/axes.py`."""
    if mesh.size == 1:
        return Layout()

    def gather(table: jax.Array) -> jax.Array:
        # From a table sharded over D the compiler would make a D-sharded activation and then have to turn it round.
        return jax.lax.with_sharding_constraint(table, replicated(mesh))

    def constrain(x: jax.Array, letters: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, named_sharding(mesh, letters, x.shape, ACTIVATION_AXES))

    return Layout(
        attention=_attention(mesh),
        experts=_experts(mesh),
        lookup=functools.partial(lookup, gather=gather),
        constrain=constrain,
    )


def _spec(mesh: Mesh, dims: str, array: jax.Array) -> PartitionSpec:
    return PartitionSpec(*partition(dims, array.shape, ACTIVATION_AXES, dict(mesh.shape)))


def _attention(mesh: Mesh) -> Callable:
    """Return attention by rows and, where the key heads divide, by heads; sequences are whole."""
    attend = functools.partial(flash_attention, device_kind=mesh.devices.flat[0].device_kind)

    def attention(q_BTNH, k_BSKH, v_BSKH, *, q_segment_ids, kv_segment_ids, q_offset, **options):
        rows, _, heads, _ = _spec(mesh, "BSKH", k_BSKH)
        traced = None if isinstance(q_offset, int) else q_offset

        def local(q_BTNH, k_BSKH, v_BSKH, ids, traced):
            offset = q_offset if traced is None else traced
            return attend(q_BTNH, k_BSKH, v_BSKH, **ids, q_offset=offset, **options)

        ids = {"q_segment_ids": q_segment_ids, "kv_segment_ids": kv_segment_ids}
        qkv = PartitionSpec(rows, None, heads)
        in_specs = (qkv, qkv, qkv, PartitionSpec(rows), PartitionSpec())
        return region(mesh, local, in_specs, qkv)(q_BTNH, k_BSKH, v_BSKH, ids, traced)

    return attention


def _experts(mesh: Mesh) -> Callable:
    """Return the experts by rows; on each device all of them, which the compiler gathers."""

    def by_rows(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        rows = _spec(mesh, "B", x_BTD[:, 0, 0])[0]

        def local(x_BTD, ids_BTk, gates_BTk, kernels):
            y_BTD, taken_E = experts(x_BTD, ids_BTk, gates_BTk, kernels, **options)
            return y_BTD, jax.lax.psum(taken_E, rows or ())

        split, whole = PartitionSpec(rows), PartitionSpec()
        in_specs = (split, split, split, dict.fromkeys(kernels, whole))
        return region(mesh, local, in_specs, (split, whole))(x_BTD, ids_BTk, gates_BTk, kernels)

    return by_rows
