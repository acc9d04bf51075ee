"""Rows of an embedding table."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table: jax.Array, ids_BT: jax.Array, dtype: jnp.dtype, gather: Callable) -> jax.Array:
    """Return `table[ids]` in `dtype`.

    Args:
      table: `[V, …]` in the parameter type, sharded or not.
      ids_BT: int32.
      dtype: the compute type.
      gather: lays the sharding of a whole table over one. It gets the table in the compute type, which
        halves what is sent and held; gradients are added up in f32 all the same.
    """
    return jnp.take(gather(table.astype(dtype)), ids_BT, axis=0)


def _lookup_fwd(table, ids_BT, dtype, gather):
    return lookup(table, ids_BT, dtype, gather), (table, ids_BT)


def _lookup_bwd(dtype, gather, residuals, g):
    table, ids_BT = residuals
    dtable = jnp.zeros(table.shape, jnp.float32).at[ids_BT].add(g.astype(jnp.float32))
    return gather(dtable).astype(table.dtype), None


lookup.defvjp(_lookup_fwd, _lookup_bwd)
