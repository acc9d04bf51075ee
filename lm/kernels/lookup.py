"""Rows of an embedding table."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def lookup(
    table: jax.Array,
    ids_BT: jax.Array,
    dtype: jnp.dtype,
    letters: str,
    gather: Callable[[jax.Array], jax.Array] = lambda table: table,
) -> jax.Array:
    """Return `table[ids]` in `dtype`.

    Args:
      table: `[V, …]` in the parameter type, sharded or not.
      ids_BT: int32.
      dtype: the compute type.
      letters: the table's dimension letters, `VD`, for what is laid over this function on a mesh.
      gather: lays the sharding of a whole table over one. It gets the table in the compute type, which halves what is
        sent and held; gradients are added up in f32 all the same.
    """
    return jnp.take(gather(table.astype(dtype)), ids_BT, axis=0)


def _lookup_fwd(table, ids_BT, dtype, letters, gather):
    return lookup(table, ids_BT, dtype, letters, gather), (table, ids_BT)


def _lookup_bwd(dtype, letters, gather, residuals, g):
    table, ids_BT = residuals
    dtable = jnp.zeros(table.shape, jnp.float32).at[ids_BT].add(g.astype(jnp.float32))
    return gather(dtable).astype(table.dtype), None


lookup.defvjp(_lookup_fwd, _lookup_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def lookup_part(table: jax.Array, ids_BT: jax.Array, first: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return `lookup` in a table that holds the rows from `first` on; zeros for ids that it does not hold."""
    own_BT = ids_BT - first
    is_own_BT = (own_BT >= 0) & (own_BT < len(table))
    rows = jnp.take(table.astype(dtype), jnp.clip(own_BT, 0, len(table) - 1), axis=0)
    return jnp.where(is_own_BT.reshape(ids_BT.shape + (1,) * (table.ndim - 1)), rows, 0)


def _part_fwd(table, ids_BT, first, dtype):
    return lookup_part(table, ids_BT, first, dtype), (table, ids_BT, first)


def _part_bwd(dtype, residuals, g):
    table, ids_BT, first = residuals
    own_BT = jnp.where(ids_BT < first, len(table), ids_BT - first)  # a negative one would count from the end
    dtable = jnp.zeros(table.shape, jnp.float32).at[own_BT].add(g.astype(jnp.float32), mode="drop")
    return dtable.astype(table.dtype), None, None


lookup_part.defvjp(_part_fwd, _part_bwd)
