"""Attention block by block in plain XLA, for any device: O(T) memory, skipped blocks cost nothing.

The forward pass is FlashAttention's (Dao 2023) with an online softmax (Milakov and Gimelshein 2018): each block of
queries walks over the blocks of keys that the plan gives it. The backward pass recomputes the weights from the
log-sum-exp, walking over blocks of queries for each block of keys. Loops with bounds that are known while tracing
and short enough are unrolled; the others run from bound to bound, so that what documents or a window leave out is
neither read nor computed. Every sum has a fixed order: the results are deterministic.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.kernels.flash_attention.options import MASKED, Options, visible
from lm.kernels.flash_attention.plan import Ranges, make_plan

_UNROLLED = 64  # pairs of blocks in a program without loops
_MAPPED = 4  # pairs of blocks from which rows with masks of their own are worth a loop over the rows


class _Blocks(NamedTuple):
    """Queries or keys in blocks: `n` blocks lead, R rows share their ranges, M = G * block for queries."""

    arrays: tuple[jax.Array, ...]  # [n, R, K, M, H] and [n, R, K, M]
    ids: jax.Array | None  # segment ids [n, R, block]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is known while tracing."""

    options: Options
    T: int
    S: int
    G: int
    block_q: int
    block_k: int
    offset: int | None  # None: traced
    by_row: bool  # rows have plans of their own

    def plan(self, q_ids_RT, kv_ids_RS, offset_R):
        """Return the plan of rows; without `by_row` one that serves them all and masks segments in every block."""
        make = partial(
            make_plan,
            self.T,
            self.S,
            self.block_q,
            self.block_k,
            causal=self.options.causal,
            window=self.options.window,
            q_offset=offset_R if self.offset is None else self.offset,
        )
        if self.by_row:
            return make(q_segment_ids=q_ids_RT, kv_segment_ids=kv_ids_RS)
        return tuple(side.shared() if q_ids_RT is None else side.shared().never_full() for side in make())

    def logits(self, q, k, i, j, q_ids, k_ids, offset_R, *, masked: bool):
        """Return the capped and masked logits `[R, K, M, block_k]` in f32, and tanh where there is a soft cap."""
        logits = self.options.scale * _dot("RKMH,RKSH->RKMS", q, k)
        tanh = None
        if self.options.softcap is not None:
            tanh = jnp.tanh(logits / self.options.softcap)
            logits = self.options.softcap * tanh
        if masked:
            at_q_R1M1 = offset_R[:, None, None, None] + i * self.block_q + self._rows()
            at_k_111S = (j * self.block_k + jnp.arange(self.block_k))[None, None, None, :]
            seen = visible(self.options, at_q_R1M1, at_k_111S)
            if self.S % self.block_k:
                seen &= at_k_111S < self.S
            if q_ids is not None:
                seen &= jnp.tile(q_ids, (1, self.G))[:, None, :, None] == k_ids[:, None, None, :]
            logits = jnp.where(seen, logits, MASKED)
        return logits, tanh

    def _rows(self):
        return jnp.tile(jnp.arange(self.block_q), self.G)[None, None, :, None]


def _dot(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _pick(blocks: _Blocks, number):
    """Return one block's arrays and ids."""
    pick = lambda a: a[number] if isinstance(number, int) else jax.lax.dynamic_index_in_dim(a, number, 0, False)  # noqa: E731
    return *map(pick, blocks.arrays), None if blocks.ids is None else pick(blocks.ids)


def _walk(bounds, body: Callable, carry: Any) -> Any:
    """Apply `body(number, carry, masked=…)` to the numbers in `[lo, hi)`, masked outside `[full_lo, full_hi)`."""
    lo, full_lo, full_hi, hi = bounds
    for start, stop, masked in ((lo, full_lo, True), (full_lo, full_hi, False), (full_hi, hi, True)):
        if isinstance(start, int):
            for number in range(start, stop):
                carry = body(number, carry, masked=masked)
        else:
            carry = jax.lax.fori_loop(start, stop, partial(body, masked=masked), carry)
    return carry


def _each(ranges: Ranges, body: Callable, carry: Any, unrolled: bool) -> tuple[Any, Any]:
    """Scan `body(number, bounds, carry) -> (carry, y)` over the blocks that own the ranges."""
    if unrolled:
        out = []
        for number in range(ranges.lo.shape[1]):
            carry, y = body(number, tuple(int(bound[0, number]) for bound in ranges), carry)
            out.append(y)
        return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *out)
    numbers = jnp.arange(ranges.lo.shape[1])
    bounds = tuple(jnp.asarray(bound[0]) for bound in ranges)
    return jax.lax.scan(lambda carry, x: body(x[0], x[1], carry), carry, (numbers, bounds))


def _unrolled(*sides: Ranges) -> bool:
    return all(side.is_static and int((side.hi - side.lo).sum()) <= _UNROLLED for side in sides)


def _split(x_RTxx, block: int, heads: tuple[int, int] | None):
    """`[R, T, K * G, …]` to `[n, R, K, G * block, …]` (heads (K, G)), or `[R, T]` ids to `[n, R, block]`; padded."""
    pad = -x_RTxx.shape[1] % block
    if pad:
        x_RTxx = jnp.pad(x_RTxx, ((0, 0), (0, pad)) + ((0, 0),) * (x_RTxx.ndim - 2))
    R, T, *rest = x_RTxx.shape
    if heads is None:
        return x_RTxx.reshape(R, T // block, block).swapaxes(0, 1)
    K, G = heads
    x = x_RTxx.reshape(R, T // block, block, K, G, *rest[1:])
    return x.transpose(1, 0, 3, 4, 2, *range(5, x.ndim)).reshape(T // block, R, K, G * block, *rest[1:])


def _join(x, block: int, heads: tuple[int, int], length: int):
    """Undo `_split`: `[n, R, K, G * block, …]` to `[R, length, K * G, …]`."""
    K, G = heads
    n, R, *_ = x.shape
    x = x.reshape(n, R, K, G, block, *x.shape[4:])
    x = x.transpose(1, 0, 4, 2, 3, *range(5, x.ndim))
    return x.reshape(R, n * block, K * G, *x.shape[5:])[:, :length]


def _by_rows(function: Callable, by_row: bool, rows: tuple) -> Any:
    """Call `function(*rows)`, row by row if each has its own plan; None stays None."""
    if not by_row or rows[0].shape[0] == 1:
        return function(*rows)
    one = lambda row: jax.tree.map(lambda a: a[0], function(*jax.tree.map(lambda a: a[None], row)))  # noqa: E731
    return jax.lax.map(one, rows)


def _run(function: Callable, arrays: tuple, offset, options: Options, blocks: tuple[int, int]) -> Any:
    """Call `function(problem, *arrays, offset_R)`, row by row where a plan of each row pays; None stays None."""
    (B, T, N, _), (S, K) = arrays[0].shape, arrays[1].shape[1:3]
    block_q, block_k = min(blocks[0], T), min(blocks[1], S)
    static = offset if isinstance(offset, int) else None
    pairs = -(-T // block_q) * -(-S // block_k)
    by_row = pairs > _MAPPED and (arrays[-1] is not None or static is None)
    problem = _Problem(options, T, S, N // K, block_q, block_k, static, by_row)
    rows = (*arrays, jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (B,)))
    if not by_row or B == 1:
        return function(problem, *rows)
    one = lambda row: jax.tree.map(lambda a: a[0], function(problem, *jax.tree.map(lambda a: a[None], row)))  # noqa: E731
    return jax.lax.map(one, rows)


def forward(q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, options: Options, *, blocks=(128, 128)):
    """Return `out_BTNH` in q's type and `lse_BNT` in f32; arguments as `flash_attention`, which documents them."""
    out_BTNH, lse_BTN = _run(_forward, (q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS), offset, options, blocks)
    return out_BTNH, lse_BTN.swapaxes(1, 2)


def _forward(p: _Problem, q_RTNH, k_RSKH, v_RSKH, q_ids_RT, kv_ids_RS, offset_R):
    K = k_RSKH.shape[2]
    of_queries, _ = p.plan(q_ids_RT, kv_ids_RS, offset_R)
    ids = lambda a, block: None if a is None else _split(a, block, None)  # noqa: E731
    queries = _Blocks((_split(q_RTNH, p.block_q, (K, p.G)),), ids(q_ids_RT, p.block_q))
    keys = _Blocks(tuple(_split(a, p.block_k, (K, 1)) for a in (k_RSKH, v_RSKH)), ids(kv_ids_RS, p.block_k))

    def query_block(i, bounds, carry):
        q, q_ids = _pick(queries, i)

        def key_block(j, state, *, masked):
            out, top, total = state
            k, v, k_ids = _pick(keys, j)
            logits, _ = p.logits(q, k, i, j, q_ids, k_ids, offset_R, masked=masked)
            new_top = jnp.maximum(top, jnp.max(logits, -1, keepdims=True))
            weights = jnp.exp(logits - new_top)
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, -1, keepdims=True)
            return out * shrink + _dot("RKMS,RKSH->RKMH", weights.astype(v.dtype), v), new_top, total

        first = jnp.full((*q.shape[:-1], 1), MASKED, jnp.float32)
        out, top, total = _walk(bounds, key_block, (jnp.zeros(q.shape, jnp.float32), first, jnp.zeros_like(first)))
        # A query that saw no key has weights of exp(0) at every masked key, or no block at all.
        seen = top > MASKED / 2
        out = jnp.where(seen, out / jnp.where(seen, total, 1.0), 0.0)
        lse = jnp.where(seen, top + jnp.log(jnp.where(seen, total, 1.0)), MASKED)
        return carry, (out.astype(q.dtype), lse[..., 0])

    _, (out, lse) = _each(of_queries, query_block, (), _unrolled(of_queries))
    return _join(out, p.block_q, (K, p.G), p.T), _join(lse, p.block_q, (K, p.G), p.T)


def backward(
    q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, lse_BNT, dout_BTNH, delta_BNT, options, *, blocks=(128, 128)
):
    """Return the gradients of q, k and v in their types; `delta` is `sum(out * dout) - dlse` in f32."""
    # Weights of masked logits are exp(MASKED - lse) = 0; of a query that saw no key they must be too.
    lse_BNT = jnp.where(lse_BNT > MASKED / 2, lse_BNT, 0.0)
    of_queries = (lse_BNT.swapaxes(1, 2), dout_BTNH, delta_BNT.swapaxes(1, 2))
    return _run(_backward, (q_BTNH, k_BSKH, v_BSKH, *of_queries, q_ids_BT, kv_ids_BS), offset, options, blocks)


def _backward(p: _Problem, q_RTNH, k_RSKH, v_RSKH, lse_RTN, dout_RTNH, delta_RTN, q_ids_RT, kv_ids_RS, offset_R):
    K = k_RSKH.shape[2]
    of_queries, of_keys = p.plan(q_ids_RT, kv_ids_RS, offset_R)
    ids = lambda a, block: None if a is None else _split(a, block, None)  # noqa: E731
    of_q = tuple(_split(a, p.block_q, (K, p.G)) for a in (q_RTNH, dout_RTNH, lse_RTN, delta_RTN))
    queries = _Blocks(of_q, ids(q_ids_RT, p.block_q))
    keys = _Blocks(tuple(_split(a, p.block_k, (K, 1)) for a in (k_RSKH, v_RSKH)), ids(kv_ids_RS, p.block_k))

    def key_block(j, bounds, dqs):
        k, v, k_ids = _pick(keys, j)

        def query_block(i, state, *, masked):
            dqs, dk, dv = state
            q, dout, lse, delta, q_ids = _pick(queries, i)
            logits, tanh = p.logits(q, k, i, j, q_ids, k_ids, offset_R, masked=masked)
            weights = jnp.exp(logits - lse[..., None])
            dv = dv + _dot("RKMS,RKMH->RKSH", weights.astype(dout.dtype), dout)
            dlogits = weights * (_dot("RKMH,RKSH->RKMS", dout, v) - delta[..., None])
            if tanh is not None:
                dlogits = dlogits * (1 - tanh * tanh)
            dlogits = (dlogits * p.options.scale).astype(q.dtype)
            dk = dk + _dot("RKMS,RKMH->RKSH", dlogits, q)
            dqs = _add(dqs, i, _dot("RKMS,RKSH->RKMH", dlogits, k))
            return dqs, dk, dv

        zero = jnp.zeros(k.shape, jnp.float32)
        dqs, dk, dv = _walk(bounds, query_block, (dqs, zero, zero))
        return dqs, (dk.astype(k.dtype), dv.astype(v.dtype))

    unrolled = _unrolled(of_queries, of_keys)
    shape, count = queries.arrays[0].shape[1:], queries.arrays[0].shape[0]
    dqs = [jnp.zeros(shape, jnp.float32)] * count if unrolled else jnp.zeros((count, *shape), jnp.float32)
    dqs, (dk, dv) = _each(of_keys, key_block, dqs, unrolled)
    dq = (jnp.stack(dqs) if unrolled else dqs).astype(q_RTNH.dtype)
    return _join(dq, p.block_q, (K, p.G), p.T), *(_join(a, p.block_k, (K, 1), p.S) for a in (dk, dv))


def _add(blocks, number, value):
    """Add to one block: of a list where the loops are unrolled, else of an array."""
    if isinstance(blocks, list):
        return [block + value if i == number else block for i, block in enumerate(blocks)]
    return blocks.at[number].add(value)
