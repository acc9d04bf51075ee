"""Ring attention over the `context` axis: queries stay, keys and values travel (Liu et al. 2023).

In step s a device has the keys of the device s places before it. Causal attention over sequences in zigzag order
(`lm.parallel.columns`) then costs the same on every device in every step: in step 0 its own two chunks, which stand
in the right order; in each later one the last chunk of its queries sees the whole first chunk of the keys, and of the
two pairs of first with first and last with last it is one whole pair too. Partial results are merged by their
log-sum-exp in f32. The backward pass goes round once more; the gradients of keys and values travel with them.

The steps are unrolled: they are few, differ in what they attend to, and may be left out (a window reaches so far).
A step's keys are sent on before it is computed, and no earlier: the barrier keeps the compiler from sending them
round at once, which would gather all of them on every device. Queries pass it too: their chunks would be cut out for
all steps at once.
"""

import dataclasses
import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.capabilities import AttentionCall
from lm.kernels.flash_attention.attention import Backend, backend_for, row_delta
from lm.kernels.flash_attention.options import MASKED, Options
from lm.kernels.named import merge_heads, name_heads, split_heads

_AXIS = "context"


class Pair(NamedTuple):
    """Local queries that attend to keys that are here: `length` of each from these on, in one call of a kernel."""

    q_start: jax.Array | int
    k_start: jax.Array | int
    length: int
    offset: jax.Array | int  # position of the first query among the keys
    options: Options


def steps(context: int, chunk: int, options: Options) -> list[int]:
    """Return the steps in which some query sees some key; chunks are of `chunk` tokens."""
    return [step for step in range(context) if min(step, context - step) <= _reach(context, chunk, options)]


def pairs(step: int, device: jax.Array | int, context: int, chunk: int, options: Options) -> list[Pair]:
    """Return what a device attends to in a step, beside what no device needs.

    Device i has chunks i and 2 C - 1 - i of the queries; of the keys, those of device i - step.
    """
    whole = Pair(0, 0, 2 * chunk, 0, options)
    if not _is_causal(options) or (step == 0 and options.window is None):
        return [whole]
    # Chunks of another step lie before the queries' wholly: only a window cuts them.
    before = options if options.window is not None else dataclasses.replace(options, causal=False)
    offset = (lambda chunks: chunks * chunk) if options.window is not None else (lambda chunks: 0)
    other = (device - step) % context
    last_to_first = Pair(chunk, 0, chunk, offset(2 * context - 1 - device - other), before)
    nearest = min(step, context - step)  # distance of chunks
    far = [last_to_first] if nearest + 1 <= _reach(context, chunk, options) else []
    if step == 0:
        return [Pair(start, start, chunk, 0, options) for start in (0, chunk)] + far
    start = jnp.where(other < device, 0, chunk)
    return [Pair(start, start, chunk, offset(abs(device - other)), before), *far]


def _is_causal(options: Options) -> bool:
    return options.causal or options.window is not None


def _reach(context: int, chunk: int, options: Options) -> int:
    """Return how many chunks back a query sees at most."""
    return 2 * context if options.window is None else (options.window + chunk - 2) // chunk


@dataclasses.dataclass(frozen=True)
class _Ring:
    """What is known while tracing."""

    context: int
    options: Options
    backend: Backend

    def walk(self, chunk: int) -> list[tuple[int, list[Pair], int]]:
        """Return (step, its pairs, how far keys travel after it) of each step; 0: they are not needed any more."""
        device, numbers = jax.lax.axis_index(_AXIS), steps(self.context, chunk, self.options)
        away = [*(b - a for a, b in itertools.pairwise(numbers)), 0]
        found = [pairs(step, device, self.context, chunk, self.options) for step in numbers]
        return list(zip(numbers, found, away, strict=True))

    def send(self, tree: Any, places: int) -> Any:
        """Return what the device so many places before this one has."""
        if places % self.context == 0:
            return tree
        route = [(i, (i + places) % self.context) for i in range(self.context)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, _AXIS, route), tree)


def ring_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    implementation: str = "auto",
    device_kind: str | None = None,
) -> jax.Array:
    """Attention of a sequence to itself, divided over the `context` axis; called where that axis is local.

    Args:
      q_BTNH, k_BTKH, v_BTKH: this device's part of a sequence in zigzag order; T is even.
      q_segment_ids, kv_segment_ids: int32 `[B, T]`, of the same tokens, or both None.

    The other arguments are those of `flash_attention`. An implementation without a log-sum-exp gives way to
    `blockwise`.

    Returns:
      `out_BTNH` in q's type, this device's part. It and the log-sum-exp are named `attention_out` for remat policies.

    Memory is that of one device's tokens and of keys and values twice: those in use, and those that arrive.

    Raises:
      ValueError: T is odd, or N not a multiple of K.
    """
    (_, T, N, H), K = q_BTNH.shape, k_BTKH.shape[2]
    context = jax.lax.axis_size(_AXIS)
    if N % K:
        raise ValueError(f"{N} query heads are not a multiple of {K} key/value heads")
    if T % 2:
        raise ValueError(f"{T} tokens per device are not two chunks")
    if window is not None and window >= context * T:
        causal, window = True, None
    call = AttentionCall(
        dtype=str(q_BTNH.dtype),
        head_dim=H,
        num_queries=T // 2,
        segment_ids=q_segment_ids is not None,
        window=window is not None,
        softcap=softcap is not None,
        q_offset=True,
        lse=True,
    )
    options = Options(causal, window, softcap, float(H**-0.5 if scale is None else scale), device_kind)
    ring = _Ring(context, options, backend_for(implementation, call))
    return _attend(q_BTNH, k_BTKH, v_BTKH, q_segment_ids, kv_segment_ids, ring)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BTNH, k_BTKH, v_BTKH, q_ids_BT, kv_ids_BT, ring: _Ring):
    return _forward(q_BTNH, k_BTKH, v_BTKH, q_ids_BT, kv_ids_BT, ring)[0]


def _forward(q_BTNH, k_BTKH, v_BTKH, q_ids_BT, kv_ids_BT, ring: _Ring):
    """Return `out_BTNH` in q's type and `lse_BNT` in f32."""
    B, T, N, _ = q_BTNH.shape
    here, queries = (k_BTKH, v_BTKH, kv_ids_BT), (q_BTNH, q_ids_BT)
    out_BTNH, lse_BNT = jnp.zeros(q_BTNH.shape, jnp.float32), jnp.full((B, N, T), MASKED, jnp.float32)
    for _, found, away in ring.walk(T // 2):
        coming = ring.send(here, away)
        for pair in found:
            q, q_ids = _cut(queries, pair.q_start, pair.length)
            k, v, kv_ids = _cut(here, pair.k_start, pair.length)
            part = ring.backend.forward(q, k, v, q_ids, kv_ids, pair.offset, pair.options)
            out, lse = _cut(out_BTNH, pair.q_start, pair.length), _cut(lse_BNT, pair.q_start, pair.length, axis=2)
            out, lse = _merged(out, lse, *part)
            out_BTNH, lse_BNT = _put(out_BTNH, out, pair.q_start, 1), _put(lse_BNT, lse, pair.q_start, 2)
        here, queries, out_BTNH, lse_BNT = jax.lax.optimization_barrier((coming, queries, out_BTNH, lse_BNT))
    return out_BTNH.astype(q_BTNH.dtype), lse_BNT


def _attend_fwd(q_BTNH, k_BTKH, v_BTKH, q_ids_BT, kv_ids_BT, ring: _Ring):
    out_BTNH, lse_BNT = _forward(q_BTNH, k_BTKH, v_BTKH, q_ids_BT, kv_ids_BT, ring)
    out_BTNH, lse_BNT = name_heads(out_BTNH, "attention_out"), checkpoint_name(lse_BNT, "attention_out")
    heads = tuple(map(merge_heads, (q_BTNH, k_BTKH, v_BTKH)))
    return out_BTNH, (heads, q_ids_BT, kv_ids_BT, out_BTNH, lse_BNT)


def _attend_bwd(ring: _Ring, residuals, dout_BTNH):
    heads, q_ids_BT, kv_ids_BT, out_BTNH, lse_BNT = residuals
    q_BTNH, k_BTKH, v_BTKH = (split_heads(x, dout_BTNH.shape[-1]) for x in heads)
    delta_BNT = row_delta(out_BTNH, dout_BTNH)
    here, queries, rows = (k_BTKH, v_BTKH, kv_ids_BT), (q_BTNH, dout_BTNH, q_ids_BT), (lse_BNT, delta_BNT)
    dq_BTNH, sums, before = jnp.zeros(q_BTNH.shape, jnp.float32), None, 0
    for step, found, away in ring.walk(q_BTNH.shape[1] // 2):
        # The sums of the steps before arrive while this one is computed.
        coming, arriving = ring.send(here, away), None if sums is None else ring.send(sums, step - before)
        sums = [jnp.zeros(x.shape, jnp.float32) for x in here[:2]]
        for pair in found:
            q, dout, q_ids = _cut(queries, pair.q_start, pair.length)
            k, v, kv_ids = _cut(here, pair.k_start, pair.length)
            lse, delta = _cut(rows, pair.q_start, pair.length, axis=2)
            dq, *dkv = ring.backend.backward(q, k, v, q_ids, kv_ids, pair.offset, lse, dout, delta, pair.options)
            dq_BTNH = _add(dq_BTNH, dq, pair.q_start)
            sums = [_add(total, part, pair.k_start) for total, part in zip(sums, dkv, strict=True)]
        sums = sums if arriving is None else jax.tree.map(jnp.add, arriving, sums)
        here, queries, rows, dq_BTNH, sums = jax.lax.optimization_barrier((coming, queries, rows, dq_BTNH, sums))
        before = step
    dk_BTKH, dv_BTKH = ring.send(sums, ring.context - before)
    grads = ((dq_BTNH, q_BTNH), (dk_BTKH, k_BTKH), (dv_BTKH, v_BTKH))
    return *(grad.astype(x.dtype) for grad, x in grads), None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _merged(out_BTNH, lse_BNT, part_BTNH, part_lse_BNT):
    """Return the result over both parts of the keys, in f32."""
    both_BNT = jnp.logaddexp(lse_BNT, part_lse_BNT)
    share = lambda lse_BNT: jnp.exp(lse_BNT - both_BNT).swapaxes(1, 2)[..., None]  # noqa: E731
    return out_BTNH * share(lse_BNT) + part_BTNH.astype(jnp.float32) * share(part_lse_BNT), both_BNT


def _cut(tree: Any, start, length: int, axis: int = 1) -> Any:
    """Return `length` of each array from `start` on."""
    return jax.tree.map(
        lambda x: x if x.shape[axis] == length else jax.lax.dynamic_slice_in_dim(x, start, length, axis), tree
    )


def _put(x, part, start, axis: int):
    return part if part.shape == x.shape else jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)


def _add(x, part, start):
    return _put(x, _cut(x, start, part.shape[1]) + part.astype(x.dtype), start, 1)
