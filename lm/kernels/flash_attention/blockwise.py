"""Attention block by block in plain XLA, for any device: O(T) memory, skipped blocks cost nothing.

The forward pass is FlashAttention's (Dao 2023) with an online softmax (Milakov and Gimelshein 2018): each block of
queries walks over the blocks of keys that the plan gives it. The backward pass recomputes the weights from the
log-sum-exp, walking over blocks of queries for each block of keys. Where the bounds are known while tracing and the
blocks are few, the loops are unrolled and neighbouring blocks joined to chunks (a few large matmuls instead of many
small ones); else they run from bound to bound, so that what documents or a window leave out is neither read nor
computed. Under a known window of moderate size nearly all blocks meet equally many: each run of such blocks is one
loop, whose turns take all that a block meets at once. Every sum has a fixed order: the results are deterministic.

The code is that of one key/value head and its G query heads. On CPU one head follows another, its logits in cache:
XLA's CPU backend divides one large matmul among the cores, but not the parts of a batched one. Elsewhere, and where
there is but one block, all heads run at once, on one plan for all.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.flash_attention.options import MASKED, Options, visible
from lm.kernels.flash_attention.plan import Plan, Ranges, make_plan


@dataclasses.dataclass(frozen=True)
class _Way:
    """How a kind of device goes about it. A block is of queries and of keys, or of all that there are.

    Attributes:
      unrolled: (greatest length, block) from which loops of known bounds are unrolled; the first that fits.
      windowed: (greatest window, block) of loops over runs, where the window's bounds are known.
      looped: (greatest length, block) of other loops.
      at_once: all heads, or one after another.
      chunk: queries or keys to which unrolled blocks are joined.
      widen: half-precision operands of matmuls, to f32: XLA's CPU backend lacks some with an f32 result.
    """

    unrolled: tuple[tuple[float, int], ...]
    windowed: tuple[tuple[float, int], ...]
    looped: tuple[tuple[float, int], ...]
    at_once: bool
    chunk: int
    widen: bool

    def block(self, length: int, window: int | None, *, is_static: bool) -> tuple[int, str]:
        """Return the block, and how blocks are gone over: "unrolled", in "runs", or with loops to traced "bounds"."""
        for limit, block in self.unrolled if is_static else ():
            if length <= limit:
                return block, "unrolled"
        for limit, block in self.windowed if is_static and window is not None else ():
            if window <= limit:
                return block, "runs"
        return next(block for limit, block in self.looped if length <= limit), "bounds"


_CPU = _Way(
    unrolled=((128, 128), (256, 64), (1024, 128), (2048, 256)),
    windowed=((256, 128), (1024, 256)),
    looped=((1023, 128), (math.inf, 512)),
    at_once=False,
    chunk=1024,
    widen=True,
)
_ACCELERATOR = _Way(
    unrolled=((512, 256),), windowed=(), looped=((math.inf, 256),), at_once=True, chunk=256, widen=False
)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is known while tracing; arrays are `q_GTH` and `k_SH`, padded to whole blocks."""

    options: Options
    way: _Way
    num_queries: int
    num_keys: int
    block_q: int
    block_k: int
    loops: str

    def plan(self, q_ids_RT, kv_ids_RS, offset) -> Plan:
        return make_plan(
            self.num_queries,
            self.num_keys,
            self.block_q,
            self.block_k,
            causal=self.options.causal,
            window=self.options.window,
            q_segment_ids=q_ids_RT,
            kv_segment_ids=kv_ids_RS,
            q_offset=offset,
        )

    def mask(self, q_ids_T, kv_ids_S, offset, i, j, count_q, count_k) -> jax.Array:
        """Return who sees whom in chunks of blocks from i and j on, `[1, T, S]`."""
        at_q_T1 = (offset + i * self.block_q + jnp.arange(count_q * self.block_q))[:, None]
        at_k_1S = (j * self.block_k + jnp.arange(count_k * self.block_k))[None]
        seen_TS = visible(self.options, at_q_T1, at_k_1S)
        if self.num_keys % self.block_k:
            seen_TS &= at_k_1S < self.num_keys
        if q_ids_T is not None:
            q_ids_T, kv_ids_S = _cut(q_ids_T, 0, i, count_q, self.block_q), _cut(kv_ids_S, 0, j, count_k, self.block_k)
            seen_TS &= q_ids_T[:, None] == kv_ids_S[None]
        return seen_TS[None]

    def dot(self, spec: str, a, b) -> jax.Array:
        if self.way.widen:
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)

    def walk(self, bounds, width: int | None, body: Callable, carry: Any) -> Any:
        """Apply `body(number, carry, count=…, masked=…)` to blocks `[lo, hi)`, masked outside `[full_lo, full_hi)`.

        With a width, which is `hi - lo`, it is applied once.
        """
        lo, full_lo, full_hi, hi = bounds
        if width is not None:
            return body(lo, carry, count=width, masked=True) if width else carry
        step = max(1, self.way.chunk // max(self.block_q, self.block_k))
        if isinstance(lo, int) and 0 < hi - lo <= step:  # one matmul, masked for the sake of a few of its logits
            return body(lo, carry, count=hi - lo, masked=(lo, hi) != (full_lo, full_hi))
        for start, stop, masked in ((lo, full_lo, True), (full_lo, full_hi, False), (full_hi, hi, True)):
            if isinstance(start, int):
                for number in range(start, stop, step):
                    carry = body(number, carry, count=min(step, stop - number), masked=masked)
            else:
                carry = jax.lax.fori_loop(start, stop, partial(body, count=1, masked=masked), carry)
        return carry


def _cut(x, axis: int, number, count: int, block: int):
    """Return `count` blocks from block `number` on."""
    if isinstance(number, int):
        return jax.lax.slice_in_dim(x, number * block, (number + count) * block, axis=axis)
    return jax.lax.dynamic_slice_in_dim(x, number * block, count * block, axis)


def _each(ranges: Ranges, body: Callable, carry: Any, loops: str) -> tuple[Any, Any]:
    """Scan `body(number, bounds, width, carry) -> (carry, y)` over the blocks that own the ranges; ys are stacked.

    The width is that of a run, else None.
    """

    def scan(numbers, width: int | None, carry):
        bounds = tuple(jnp.asarray(bound[0, numbers]) for bound in ranges)
        return jax.lax.scan(lambda carry, x: body(*x, width, carry), carry, (jnp.asarray(numbers), bounds))

    numbers, ys = np.arange(ranges.lo.shape[1]), []
    if loops == "bounds":
        return scan(numbers, None, carry)
    if loops == "runs":
        widths = (ranges.hi - ranges.lo)[0]
        for run in np.split(numbers, np.flatnonzero(np.diff(widths)) + 1):
            carry, y = scan(run, int(widths[run[0]]), carry)
            ys.append(y)
        return carry, jax.tree.map(lambda *y: jnp.concatenate(y), *ys)
    for number in numbers.tolist():
        carry, y = body(number, tuple(int(bound[0, number]) for bound in ranges), None, carry)
        ys.append(y)
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)


def _padded(x, axis: int, block: int):
    pad = -x.shape[axis] % block
    return jnp.pad(x, [(0, pad if i == axis else 0) for i in range(x.ndim)]) if pad else x


def _by_heads(x_BTNx, kv_heads: int, block: int):
    """`[B, T, N, …]` to `[B K, G, T, …]`, T padded."""
    B, T, N, *rest = x_BTNx.shape
    x = x_BTNx.reshape(B, T, kv_heads, N // kv_heads, *rest).transpose(0, 2, 3, 1, *range(4, 4 + len(rest)))
    return _padded(x.reshape(B * kv_heads, N // kv_heads, T, *rest), 2, block)


def _from_heads(x_RGTx, batch: int, length: int):
    """Undo `_by_heads`."""
    R, G, _, *rest = x_RGTx.shape
    x = x_RGTx[:, :, :length].reshape(batch, R // batch * G, length, *rest)
    return x.swapaxes(1, 2)


def _run(function: Callable, queries: tuple, keys: tuple, ids: tuple, offset, options: Options, way: _Way):
    """Return `function(problem, plan, …)` of every key/value head, stacked on `[B K]`; see `_by_heads`."""
    (B, T), (_, S, K, _) = queries[0].shape[:2], keys[0].shape
    # Where all heads run at once the plan is one that knows no documents.
    knows_ids = ids[0] is not None and not way.at_once and max(T, S) > way.looped[0][1]
    is_static = isinstance(offset, int) and not knows_ids
    block, loops = way.block(max(T, S), options.window, is_static=is_static)
    block_q, block_k = min(block, T), min(block, S)
    problem = _Problem(options, way, T, S, block_q, block_k, loops)
    at_once = way.at_once or (block_q >= T and block_k >= S)
    one_plan = problem.plan(None, None, offset) if at_once or is_static else None
    if one_plan is not None:
        one_plan = Plan(*(side.shared() if ids[0] is None else side.shared().never_full() for side in one_plan))
    offset_B = jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (B,))
    heads = (
        tuple(_by_heads(x, K, block_q) for x in queries),
        tuple(_by_heads(x, K, block_k)[:, 0] for x in keys),
        tuple(None if x is None else jnp.repeat(x, K, axis=0) for x in (*ids, offset_B)),
    )

    def one(head):
        of_queries, of_keys, (q_ids_T, kv_ids_S, offset) = head
        plan = one_plan
        if plan is None:
            plan = problem.plan(*(None if x is None else x[None] for x in (q_ids_T, kv_ids_S)), offset)
        if q_ids_T is not None:
            q_ids_T, kv_ids_S = _padded(q_ids_T, 0, block_q), _padded(kv_ids_S, 0, block_k)
        return function(problem, plan, *of_queries, *of_keys, q_ids_T, kv_ids_S, offset)

    if at_once:
        return jax.vmap(one)(heads)
    return jax.lax.map(one, heads)


def forward(q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, options: Options):
    """Return `out_BTNH` in q's type and `lse_BNT` in f32; arguments as `flash_attention`, which documents them."""

    def run(way, q_BTNH, k_BSKH, v_BSKH, ids, offset_traced):
        at = offset if offset_traced is None else offset_traced
        out, lse = _run(_forward, (q_BTNH,), (k_BSKH, v_BSKH), ids, at, options, way)
        B, T = q_BTNH.shape[:2]
        return _from_heads(out, B, T), _from_heads(lse, B, T).swapaxes(1, 2)

    traced = None if isinstance(offset, int) else offset
    return _by_platform(run, q_BTNH, k_BSKH, v_BSKH, (q_ids_BT, kv_ids_BS), traced)


def _forward(p: _Problem, plan: Plan, q_GTH, k_SH, v_SH, q_ids_T, kv_ids_S, offset):
    def query_block(i, bounds, width, carry):
        q = _cut(q_GTH, 1, i, 1, p.block_q)

        def key_chunk(j, state, *, count, masked):
            out, top, total = state
            k, v = _cut(k_SH, 0, j, count, p.block_k), _cut(v_SH, 0, j, count, p.block_k)
            logits = p.options.scale * p.dot("GTH,SH->GTS", q, k)
            if p.options.softcap is not None:
                logits = p.options.softcap * jnp.tanh(logits / p.options.softcap)
            if masked:
                logits = jnp.where(p.mask(q_ids_T, kv_ids_S, offset, i, j, 1, count), logits, MASKED)
            new_top = jnp.maximum(top, jnp.max(logits, -1, keepdims=True))
            weights = jnp.exp(logits - new_top)
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, -1, keepdims=True)
            return out * shrink + p.dot("GTS,SH->GTH", weights.astype(v.dtype), v), new_top, total

        first = jnp.full_like(q, MASKED, jnp.float32, (*q.shape[:-1], 1))  # `_like`: varies over the same mesh axes
        start = (jnp.zeros_like(q, jnp.float32), first, jnp.zeros_like(first))
        out, top, total = p.walk(bounds, width, key_chunk, start)
        # A query that saw no key has weights of exp(0) at every masked key, or no block at all.
        seen = top > MASKED / 2
        out = jnp.where(seen, out / jnp.where(seen, total, 1.0), 0.0)
        lse = jnp.where(seen, top + jnp.log(jnp.where(seen, total, 1.0)), MASKED)
        return carry, (out.astype(q.dtype), lse[..., 0])

    _, (out_nGTH, lse_nGT) = _each(plan.of_queries, query_block, (), p.loops)
    return out_nGTH.swapaxes(0, 1).reshape(q_GTH.shape), lse_nGT.swapaxes(0, 1).reshape(q_GTH.shape[:2])


def backward(q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, lse_BNT, dout_BTNH, delta_BNT, options: Options):
    """Return the gradients of q, k and v in their types; `delta` is `sum(out * dout) - dlse` in f32."""

    def run(way, q_BTNH, k_BSKH, v_BSKH, ids, offset_traced, lse_BNT, dout_BTNH, delta_BNT):
        at = offset if offset_traced is None else offset_traced
        # Weights of masked logits are exp(MASKED - lse) = 0; of a query that saw no key they must be too.
        lse_BNT = jnp.where(lse_BNT > MASKED / 2, lse_BNT, 0.0)
        queries = (q_BTNH, dout_BTNH, lse_BNT.swapaxes(1, 2), delta_BNT.swapaxes(1, 2))
        dq, dk, dv = _run(_backward, queries, (k_BSKH, v_BSKH), ids, at, options, way)
        (B, T), S = q_BTNH.shape[:2], k_BSKH.shape[1]
        return _from_heads(dq, B, T), _from_heads(dk[:, None], B, S), _from_heads(dv[:, None], B, S)

    traced = None if isinstance(offset, int) else offset
    return _by_platform(run, q_BTNH, k_BSKH, v_BSKH, (q_ids_BT, kv_ids_BS), traced, lse_BNT, dout_BTNH, delta_BNT)


def _by_platform(run: Callable, *arrays):
    """Call `run(way, *arrays)` in the way of the device that the program is compiled for."""
    return jax.lax.platform_dependent(*arrays, cpu=partial(run, _CPU), default=partial(run, _ACCELERATOR))


def _backward(p: _Problem, plan: Plan, q_GTH, dout_GTH, lse_GT, delta_GT, k_SH, v_SH, q_ids_T, kv_ids_S, offset):
    def key_block(j, bounds, width, dq_HGT):
        k, v = _cut(k_SH, 0, j, 1, p.block_k), _cut(v_SH, 0, j, 1, p.block_k)

        # Logits are transposed here, so that two of the three gradients are matmuls of untransposed operands.
        def query_chunk(i, state, *, count, masked):
            dq_HGT, dk, dv = state
            q, dout, lse, delta = (_cut(x, 1, i, count, p.block_q) for x in (q_GTH, dout_GTH, lse_GT, delta_GT))
            logits = p.options.scale * p.dot("SH,GTH->SGT", k, q)
            if p.options.softcap is not None:
                tanh = jnp.tanh(logits / p.options.softcap)
                logits = p.options.softcap * tanh
            if masked:
                seen = p.mask(q_ids_T, kv_ids_S, offset, i, j, count, 1).transpose(2, 0, 1)
                logits = jnp.where(seen, logits, MASKED)
            weights = jnp.exp(logits - lse[None])
            dv = dv + p.dot("SGT,GTH->SH", weights.astype(dout.dtype), dout)
            dlogits = weights * (p.dot("SH,GTH->SGT", v, dout) - delta[None])
            if p.options.softcap is not None:
                dlogits = dlogits * (1 - tanh * tanh)
            dlogits = dlogits.astype(q.dtype)  # less the factor `scale`, which dq and dk get at the end
            dk = dk + p.dot("SGT,GTH->SH", dlogits, q)
            dq = _cut(dq_HGT, 2, i, count, p.block_q) + p.dot("SH,SGT->HGT", k, dlogits)
            return jax.lax.dynamic_update_slice_in_dim(dq_HGT, dq, i * p.block_q, 2), dk, dv

        zero = jnp.zeros_like(k, jnp.float32)
        dq_HGT, dk, dv = p.walk(bounds, width, query_chunk, (dq_HGT, zero, zero))
        return dq_HGT, ((p.options.scale * dk).astype(k.dtype), dv.astype(v.dtype))

    zero_HGT = jnp.zeros_like(q_GTH, jnp.float32, (q_GTH.shape[-1], *q_GTH.shape[:-1]))
    dq_HGT, (dk_nSH, dv_nSH) = _each(plan.of_keys, key_block, zero_HGT, p.loops)
    dq_GTH = (p.options.scale * dq_HGT.transpose(1, 2, 0)).astype(q_GTH.dtype)
    return dq_GTH, dk_nSH.reshape(k_SH.shape), dv_nSH.reshape(v_SH.shape)
