"""Ulysses: attention over whole sequences, each device of the `context` axis its own heads (Jacobs et al. 2023)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.parallel.columns import from_zigzag, to_zigzag

_AXIS = "context"


def ulysses_attention(
    attend: Callable,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    **options,
) -> jax.Array:
    """Attention of a sequence to itself, divided over the `context` axis; called where that axis is local.

    An all-to-all exchanges tokens for heads, and another one the results back. Where K is not a multiple of the
    axis' size C, key/value heads are repeated up to one: each device gets those of its query heads.

    Args:
      attend: `lm.kernels.flash_attention.flash_attention`, or a partial of it.
      q_BTNH, k_BTKH, v_BTKH: this device's part of a sequence in zigzag order (`lm.parallel.columns`).
      q_segment_ids, kv_segment_ids: int32 `[B, T]`, of the same tokens, or both None.
      options: of `attend`.

    Returns:
      `out_BTNH`, this device's part.

    Raises:
      ValueError: N is not a multiple of C.
    """
    context, N, K = jax.lax.axis_size(_AXIS), q_BTNH.shape[2], k_BTKH.shape[2]
    if N % context:
        raise ValueError(f"{N} query heads are not a multiple of the {context} devices that share a sequence")
    copies = context // math.gcd(K, context)

    def of_heads(x_BTNH):
        return from_zigzag(jax.lax.all_to_all(x_BTNH, _AXIS, 2, 1, tiled=True), context)

    def whole(ids_BT):
        return None if ids_BT is None else from_zigzag(jax.lax.all_gather(ids_BT, _AXIS, axis=1, tiled=True), context)

    k_BTKH, v_BTKH = (x if copies == 1 else jnp.repeat(x, copies, axis=2) for x in (k_BTKH, v_BTKH))
    ids = {"q_segment_ids": whole(q_segment_ids), "kv_segment_ids": whole(kv_segment_ids)}
    out_BTNH = attend(of_heads(q_BTNH), of_heads(k_BTKH), of_heads(v_BTKH), **ids, **options)
    return jax.lax.all_to_all(to_zigzag(out_BTNH, context), _AXIS, 1, 2, tiled=True)
