"""Embedding tables whose rows are spread over devices (Megatron-LM, Shoeybi et al. 2019).

Each device looks up the ids that it holds, and one reduction over `tensor` puts the rows together: scattered over the
sequence where the residual stream is (Korthikanti et al. 2022). Of the gradient each device adds up its own rows.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.axes import MODEL_AXES, RESIDUAL_AXES, TOKEN_AXES, partition
from lm.kernels.lookup import add_part, lookup, take_part
from lm.parallel.mesh import make_constrain
from lm.parallel.region import free_axes, region


def make_lookup(mesh: Mesh) -> Callable:
    """Return `lm.kernels.lookup.lookup` for tables and ids sharded over the mesh.

    Without tensor parallelism a table is gathered whole before it is used.
    """
    if mesh.shape["tensor"] == 1:
        return functools.partial(lookup, gather=make_constrain(mesh))

    def sharded(table, ids_BT, dtype, letters):
        return _lookup(table, ids_BT, dtype, letters, mesh)

    return sharded


# With its own backward pass, so that the table is gathered over `fsdp` in the compute type while its gradient is f32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table, ids_BT, dtype, letters, mesh):
    layout = _layout(table.shape, ids_BT.shape, letters, mesh)

    def local(table, ids_BT):
        rows = take_part(table, ids_BT, layout.first)
        if not layout.is_split:
            return rows
        if layout.is_scattered:
            return jax.lax.psum_scatter(rows, "tensor", scatter_dimension=1, tiled=True)
        return jax.lax.psum(rows, "tensor")

    return region(mesh, local, (layout.table, layout.ids), layout.rows)(table.astype(dtype), ids_BT)


def _lookup_fwd(table, ids_BT, dtype, letters, mesh):
    return _lookup(table, ids_BT, dtype, letters, mesh), (table, ids_BT)


def _lookup_bwd(dtype, letters, mesh, residuals, g):
    table, ids_BT = residuals
    layout = _layout(table.shape, ids_BT.shape, letters, mesh)

    def local(g, ids_BT):
        if layout.is_scattered:
            g = jax.lax.all_gather(g, "tensor", axis=1, tiled=True)
        return jax.lax.psum(add_part(g, ids_BT, layout.first, layout.num_rows), layout.summed)

    dtable = region(mesh, local, (layout.rows, layout.ids), layout.table)(g, ids_BT)
    return dtable.astype(table.dtype), None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a table, its ids and the rows taken from it are spread over the axes that are not local yet."""

    table: PartitionSpec
    ids: PartitionSpec
    rows: PartitionSpec
    summed: tuple[str, ...]  # the axes that the ids are split over
    num_rows: int  # of the table on each device
    is_split: bool  # the table's rows over `tensor`
    is_scattered: bool  # what is taken from a split table over `tensor` too, along the sequence

    @property
    def first(self) -> jax.Array | int:
        return jax.lax.axis_index("tensor") * self.num_rows if self.is_split else 0


def _layout(shape, ids_shape, letters, mesh) -> _Layout:
    free = free_axes(mesh)
    table = partition(letters, shape, MODEL_AXES, free)
    axes = TOKEN_AXES if letters[1:] != "D" else {**TOKEN_AXES, "T": RESIDUAL_AXES["T"]}
    rows = partition("BT" + letters[1:], (*ids_shape, *shape[1:]), axes, free)
    is_split = bool(table[0])
    # A device needs the ids of all tokens whose rows it may hold; of a whole table, those of its own tokens.
    ids = partition("BT", ids_shape, TOKEN_AXES, free) if is_split else rows[:2]
    return _Layout(
        *(PartitionSpec(*spec) for spec in (table, ids, rows)),
        summed=tuple(axis for axes in ids for axis in axes or ()),
        num_rows=shape[0] // free["tensor"] if is_split else shape[0],
        is_split=is_split,
        is_scattered=is_split and "tensor" in (rows[1] or ()),
    )
