"""Which blocks of keys a block of queries meets, and which of them need no mask: one plan for every backend.

The logits `[T, S]` are cut into blocks. Causality, the window and the segment ids say of each block whether any
query in it sees any key (`visible`) and whether every query sees every key (`full`). A kernel walks over the range
from its first visible block to its last, forward by query blocks and backward by either side; it masks outside the
full range only. With documents packed one after another the ranges hold visible blocks alone; with ids in another
order what lies between is masked, never missed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # numpy where everything is known while tracing, else JAX: bounds that are known can be unrolled


class Ranges(NamedTuple):
    """Per row and block of one side, blocks `[lo, hi)` of the other; `[full_lo, full_hi)` in it need no mask.

    int32 `[R, n]`; R is the batch, or 1 where all rows are alike. A block that meets nothing has lo = hi, and
    one without full blocks full_lo = full_hi = hi.
    """

    lo: Array
    full_lo: Array
    full_hi: Array
    hi: Array

    @property
    def is_static(self) -> bool:
        return isinstance(self.lo, np.ndarray)

    def never_full(self) -> "Ranges":
        """Return the ranges with every block masked."""
        return self._replace(full_lo=self.hi, full_hi=self.hi)

    def shared(self) -> "Ranges":
        """Return ranges `[1, n]` that serve all rows at once: they hold every row's, and are full for every row."""
        if self.lo.shape[0] == 1:
            return self
        xp = np if self.is_static else jnp
        full_lo, full_hi = xp.max(self.full_lo, 0, keepdims=True), xp.min(self.full_hi, 0, keepdims=True)
        lo, hi = (
            xp.min(xp.where(self.lo < self.hi, self.lo, 2**30), 0, keepdims=True),
            xp.max(self.hi, 0, keepdims=True),
        )
        none = full_lo >= full_hi
        return Ranges(xp.minimum(lo, hi), xp.where(none, hi, full_lo), xp.where(none, hi, full_hi), hi)


class Plan(NamedTuple):
    """The ranges of both sides."""

    of_queries: Ranges  # key blocks, per block of queries
    of_keys: Ranges  # query blocks, per block of keys


def make_plan(
    num_queries: int,
    num_keys: int,
    block_q: int,
    block_k: int,
    *,
    causal: bool,
    window: int | None = None,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_offset: jax.Array | int = 0,
) -> Plan:
    """Return the plan of `num_queries` x `num_keys` logits in blocks of `block_q` x `block_k`.

    Args:
      causal, window: as in `flash_attention`.
      q_segment_ids, kv_segment_ids: `[B, T]` and `[B, S]`, or both None.
      q_offset: position of the first query among the keys, an int, a scalar or `[B]`.

    Numpy arrays come back where nothing depends on traced values. A last block that is not whole counts only the
    positions that exist, and a block with keys beyond the end is never full (queries beyond it harm nothing).
    """
    is_static = q_segment_ids is None and isinstance(q_offset, int)
    xp = np if is_static else jnp
    offset_R11 = xp.asarray(q_offset, xp.int32).reshape(-1, 1, 1)
    q_first = offset_R11 + (block_q * np.arange(-(-num_queries // block_q), dtype=np.int32))[None, :, None]
    q_last = xp.minimum(q_first + block_q, offset_R11 + num_queries) - 1
    k_first = (block_k * np.arange(-(-num_keys // block_k), dtype=np.int32))[None, None, :]
    k_last = np.minimum(k_first + block_k, num_keys) - 1

    visible = xp.broadcast_to(xp.asarray(True), (offset_R11.shape[0], q_first.shape[1], k_first.shape[2]))
    full = visible & (k_first + block_k <= num_keys)
    if causal or window is not None:
        visible, full = visible & (k_first <= q_last), full & (k_last <= q_first)
    if window is not None:
        visible, full = visible & (k_last > q_first - window), full & (k_first > q_last - window)
    if q_segment_ids is not None:
        q_least, q_most = (side[:, :, None] for side in _extremes(q_segment_ids, block_q))
        k_least, k_most = (side[:, None, :] for side in _extremes(kv_segment_ids, block_k))
        visible = visible & (q_least <= k_most) & (k_least <= q_most)
        full = full & (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
    return Plan(_ranges(visible, full, xp), _ranges(visible.swapaxes(1, 2), full.swapaxes(1, 2), xp))


def _extremes(ids_RT: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Return the least and the greatest segment id of each block, `[R, n]`."""
    padded = jnp.pad(ids_RT, ((0, 0), (0, -ids_RT.shape[1] % block)), mode="edge")
    blocks = padded.reshape(padded.shape[0], -1, block)
    return blocks.min(-1), blocks.max(-1)


def _ranges(visible, full, xp) -> Ranges:
    """Return the ranges along the last axis."""
    count = visible.shape[-1]
    number = np.arange(count, dtype=np.int32).reshape(1, 1, count)

    def first(where, otherwise):
        return xp.min(xp.where(where, number, xp.int32(count)), -1).clip(max=otherwise)

    hi = xp.max(xp.where(visible, number + 1, xp.int32(0)), -1)
    lo = first(visible, hi)
    full_lo = first(full & visible, hi)
    full_hi = first(~(full & visible) & (number >= full_lo[..., None]), hi)
    return Ranges(*(x.astype(np.int32) for x in (lo, full_lo, full_hi, hi)))
