"""What the two TPU kernels share: which key block a grid step meets, the logits of a tile, and the order of work.

Logits lie transposed, keys on sublanes and queries on lanes. A row statistic (maximum, sum, log-sum-exp) is then
`[1, queries]`: it is reduced by adding registers, not lanes, takes 1/128 of a lane-replicated column, and spreads
over the tile for free.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm.kernels.flash_attention.options import MASKED, Options
from lm.kernels.flash_attention.plan import Ranges

LANES, SUBLANES = 128, 8
LOG2E = math.log2(math.e)
# Where a maximum starts: exp2(MASKED - maximum) is 0 even where no key is seen yet, so that weights need no mask.
LEAST_MAXIMUM = MASKED / 2

# Contracted dimensions of `dot`: rows by rows, columns by columns, and the plain product.
NT, TN, NN = ((1,), (1,)), ((0,), (0,)), ((1,), (0,))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The static part of a call.

    Attributes:
      block_q, block_k: queries and keys of a grid step, multiples of 128.
      sub_q, sub_k: of the tiles of logits in it; they divide the blocks.
      num_keys: keys that exist, where the last block is not whole, else None.
    """

    options: Options
    block_q: int
    block_k: int
    sub_q: int
    sub_k: int
    num_keys: int | None

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by, once, so that logits need no further factor."""
        return self.options.scale * (LOG2E if self.options.softcap is None else 1 / self.options.softcap)

    def tasks(self) -> list[tuple[slice, slice]]:
        """Return the slices (keys, queries) of the tiles."""
        keys = [slice(k, k + self.sub_k) for k in range(0, self.block_k, self.sub_k)]
        queries = [slice(q, q + self.sub_q) for q in range(0, self.block_q, self.sub_q)]
        return [(k, q) for k in keys for q in queries]

    def logits(self, products_kq):
        """Return the capped logits times log2(e), and the tanh in them or None."""
        if self.options.softcap is None:
            return products_kq, None
        tanh_kq = jnp.tanh(products_kq)
        return (self.options.softcap * LOG2E) * tanh_kq, tanh_kq

    def mask(self, logits_kq, keys: slice, queries: slice, first_key, first_query, q_ids_ref, k_ids_ref):
        """Return the logits with MASKED where a query may not see a key.

        Args:
          first_key, first_query: positions of the block's first key and query among the keys.
          q_ids_ref, k_ids_ref: segment ids `[1, block]`, or None.
        """
        causal, window, visible_kq = self.options.causal, self.options.window, None

        def also(condition):
            nonlocal visible_kq
            visible_kq = condition if visible_kq is None else visible_kq & condition

        # Relative to the tile's first key, so that the keys' side is a constant.
        q_1q = lax.broadcasted_iota(jnp.int32, (1, self.sub_q), 1) + (first_query + queries.start)
        first_key = first_key + keys.start
        last_1q = q_1q if causal or window is not None else None
        if self.num_keys is not None:
            last_1q = jnp.full_like(q_1q, self.num_keys - 1) if last_1q is None else last_1q.clip(max=self.num_keys - 1)
        if last_1q is not None:
            k_kq = lax.broadcasted_iota(jnp.int32, logits_kq.shape, 0)
            also(k_kq <= last_1q - first_key)
            if window is not None:
                also(k_kq > q_1q - (window + first_key))
        if q_ids_ref is not None:
            k_ids_kq = jnp.broadcast_to(k_ids_ref[:, keys], (LANES, self.sub_k)).T
            also(jnp.tile(k_ids_kq, (1, self.sub_q // LANES)) == q_ids_ref[:, queries])
        return logits_kq if visible_kq is None else jnp.where(visible_kq, logits_kq, MASKED)


class Walk(NamedTuple):
    """A plan's ranges as the kernels read them: `ranges` is a scalar-prefetched `[4 * rows * blocks]`."""

    rows: int
    blocks: int
    steps: int  # the most key blocks that any block of queries meets, at least 1
    has_full: bool
    has_partial: bool

    def read(self, ranges_ref, row, block_q) -> Ranges:
        row = row if self.rows > 1 else 0
        place = row * self.blocks + block_q
        return Ranges(*(ranges_ref[field * self.rows * self.blocks + place] for field in range(4)))

    def key_block(self, ranges_ref, row, block_q, step):
        """Return the key block of a step; a step past the end repeats the last, so that nothing is fetched."""
        ranges = self.read(ranges_ref, row, block_q)
        return jnp.maximum(jnp.minimum(ranges.lo + step, ranges.hi - 1), 0)

    def is_next_fetched(self, ranges_ref, row, block_q, step):
        """Return whether a step's key block is another than the step's before, 0 or 1."""
        before = self.key_block(ranges_ref, row, block_q, jnp.maximum(step - 1, 0))
        return ((step == 0) | (self.key_block(ranges_ref, row, block_q, step) != before)).astype(jnp.int32)


def walk_of(ranges: Ranges, num_blocks: int) -> tuple[Walk, jax.Array]:
    """Return how to walk over the ranges of `num_blocks` key blocks, and what to prefetch."""
    rows, blocks = ranges.lo.shape
    steps, has_full, has_partial = num_blocks, True, True
    if ranges.is_static:
        steps = max(1, int((ranges.hi - ranges.lo).max()))
        has_full = bool((ranges.full_hi > ranges.full_lo).any())
        has_partial = bool(((ranges.full_lo > ranges.lo) | (ranges.hi > ranges.full_hi)).any())
    xp = np if ranges.is_static else jnp
    return Walk(rows, blocks, steps, has_full, has_partial), jnp.asarray(xp.stack(ranges).reshape(-1))


def dot(x, y, contract):
    """Multiply with f32 sums; f32 inputs are multiplied as f32, which the matrix unit does in several passes."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, y, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def overlap(tasks: Sequence, first: Callable, middle: Callable, last: Callable) -> None:
    """Do `last(task, middle(task, first(task)))` for each task so that matrix and vector work lie side by side.

    The compiler schedules one basic block but keeps near the order it is given: the products of the next task
    come before the vector work of this one, and the products that end a task after the vector work of the next.
    """
    started, waiting = first(tasks[0]), None
    for number, task in enumerate(tasks):
        following = first(tasks[number + 1]) if number + 1 < len(tasks) else None
        done: Any = middle(task, started)
        if waiting is not None:
            last(*waiting)
        started, waiting = following, (task, done)
    last(*waiting)


def largest_divisor(block: int, at_most: int) -> int:
    """Return the greatest multiple of 128 that divides `block` and is no more than `at_most`."""
    return max(size for size in range(LANES, min(block, at_most) + 1, LANES) if block % size == 0)


def varying_like(shape: tuple[int, ...], dtype, operands: Sequence[jax.Array]) -> jax.ShapeDtypeStruct:
    """Return an output's type; inside `shard_map` it varies over the mesh axes that any operand varies over."""
    axes = [jax.typeof(x).manual_axis_type for x in operands]
    varying = frozenset().union(*(axis.varying for axis in axes))
    kind = axes[0].update(varying=varying) if varying else None
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
