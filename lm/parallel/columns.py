"""Which columns of a batch each device of the `context` axis holds.

Under causality the queries at a sequence's end do most of the work. Of 2 C equal chunks device i therefore holds
chunk i and chunk 2 C - 1 - i (Llama 3, 2024, section 3.3.2; Brandon et al. 2023 balance by stripes), which makes all
devices' work equal. A batch's T axis is in that order from the host on: tokens, targets, weights, segment ids and
positions alike. Nothing in the model but attention asks what stands beside what, and sums over tokens have no order.

The order depends on the mesh and T alone, so that `place_batch` and ring and Ulysses attention agree without being told.
"""

import jax
import jax.numpy as jnp
import numpy as np


def is_split(length: int, context: int) -> bool:
    """Return whether sequences of this length are divided over a `context` axis of this size."""
    return context > 1 and length % (2 * context) == 0


def zigzag(length: int, context: int) -> np.ndarray:
    """Return the columns in the order in which `context` devices hold them, int64 `[length]`; argsort undoes it."""
    chunks = np.arange(length).reshape(2 * context, -1)
    return np.stack([chunks[:context], chunks[: context - 1 : -1]], 1).reshape(-1)


def to_zigzag(x_BTx: jax.Array, context: int) -> jax.Array:
    """Return `[B, T, …]` with T in zigzag order."""
    B, T, *rest = x_BTx.shape
    halves = x_BTx.reshape(B, 2, context, T // (2 * context), *rest)
    return jnp.stack([halves[:, 0], halves[:, 1, ::-1]], 2).reshape(x_BTx.shape)


def from_zigzag(x_BTx: jax.Array, context: int) -> jax.Array:
    """Undo `to_zigzag`."""
    B, T, *rest = x_BTx.shape
    chunks = x_BTx.reshape(B, context, 2, T // (2 * context), *rest)
    return jnp.stack([chunks[:, :, 0], chunks[:, ::-1, 1]], 1).reshape(x_BTx.shape)
