"""Names of arrays with heads, for remat policies."""

import jax
from jax.ad_checkpoint import checkpoint_name


def name_heads(x_BTNH: jax.Array, name: str) -> jax.Array:
    """Return x, named for remat policies as `[B, T, N * H]`.

    What is kept for the backward pass is kept in that shape: TPUs pad a last axis to 128 lanes, which doubles an
    array of heads of 64.
    """
    return split_heads(checkpoint_name(merge_heads(x_BTNH), name), x_BTNH.shape[-1])


def merge_heads(x_BTNH: jax.Array) -> jax.Array:
    """`[B, T, N, H]` to `[B, T, N * H]`."""
    return x_BTNH.reshape(*x_BTNH.shape[:2], -1)


def split_heads(x_BTD: jax.Array, head_dim: int) -> jax.Array:
    """Undo `merge_heads`."""
    return x_BTD.reshape(*x_BTD.shape[:2], -1, head_dim)
