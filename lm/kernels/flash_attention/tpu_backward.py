"""The backward TPU kernel: all three gradients in one pass of five products per tile.

It walks as the forward pass does, over the key blocks of each block of queries. dq gathers in VMEM over a block's
steps and is written once; dk and dv gather in f32 VMEM over all queries and query heads of a key head. So no copy of
dq per key block exists (as in JAX's fused splash attention), and the order of all sums is fixed.

Dao 2023 (FlashAttention-2): weights are recomputed from the log-sum-exp; `delta` is the row sum of out * dout.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.kernels.flash_attention.tpu_common import (
    LANES,
    NN,
    NT,
    SUBLANES,
    TN,
    Tiles,
    Walk,
    dot,
    overlap,
    varying_like,
)

f32 = jnp.float32


def backward_call(
    q_BNTH,
    k_BKSH,
    v_BKSH,
    dout_BNTH,
    lse_BN1T,
    delta_BN1T,
    q_ids_B1T,
    k_ids_B1S,
    ranges,
    offset_R,
    *,
    tiles: Tiles,
    walk: Walk,
    first_key: int,
    dq_dtype,
    vmem_bytes: int,
    count_steps: bool,
):
    """Run the kernel over whole blocks, `S` keys of which fit into VMEM.

    Args:
      q_BNTH, k_BKSH, v_BKSH, dout_BNTH, q_ids_B1T, k_ids_B1S, ranges, offset_R, vmem_bytes: as in `forward_call`.
      lse_BN1T: log-sum-exp in base 2; 0 for a query that sees no key.
      delta_BN1T: sum(out * dout) - dlse.
      first_key: position of the first key of `k_BKSH`, whose blocks `ranges` count from 0.
      dq_dtype: f32 where it is added to that of other keys.

    Returns:
      `dq_BNTH`, `dk_BKSH`, `dv_BKSH` and, with `count_steps`, the counts of `forward_call`.
    """
    (B, N, T, H), (K, S) = q_BNTH.shape, k_BKSH.shape[1:3]
    G = N // K
    bq, bk = tiles.block_q, tiles.block_k

    def at_key_block(b, i, step, ranges_ref):
        return walk.key_block(ranges_ref, b, i, step)

    queries = pl.BlockSpec((None, None, bq, H), lambda b, kv, g, i, step, *_: (b, kv * G + g, i, 0))
    keys = pl.BlockSpec((None, None, bk, H), lambda b, kv, g, i, step, r, _: (b, kv, at_key_block(b, i, step, r), 0))
    rows = pl.BlockSpec((None, None, 1, bq), lambda b, kv, g, i, step, *_: (b, kv * G + g, 0, i))
    all_keys = pl.BlockSpec(
        (None, None, S, H), lambda b, kv, g, i, step, *_: (b, kv, 0, 0), pipeline_mode=pl.Buffered(buffer_count=1)
    )
    has_ids = q_ids_B1T is not None
    ids = [
        pl.BlockSpec((None, 1, bq), lambda b, kv, g, i, step, *_: (b, 0, i)),
        pl.BlockSpec((None, 1, bk), lambda b, kv, g, i, step, r, _: (b, 0, at_key_block(b, i, step, r))),
    ]
    counts = pl.BlockSpec((None, None, None, SUBLANES, LANES), lambda b, kv, g, i, step, *_: (b, kv * G + g, i, 0, 0))
    operands = (q_BNTH, k_BKSH, v_BKSH, dout_BNTH, lse_BN1T, delta_BN1T, *((q_ids_B1T, k_ids_B1S) if has_ids else ()))
    typed = partial(varying_like, operands=(ranges, offset_R, *operands))
    outputs = [
        (queries, typed(q_BNTH.shape, dq_dtype)),
        (all_keys, typed(k_BKSH.shape, k_BKSH.dtype)),
        (all_keys, typed(v_BKSH.shape, v_BKSH.dtype)),
    ]
    if count_steps:
        outputs.append((counts, typed((B, N, walk.blocks, SUBLANES, LANES), jnp.int32)))
    return pl.pallas_call(
        partial(
            _kernel,
            tiles=tiles,
            walk=walk,
            rows=offset_R.shape[0],
            first_key=first_key,
            has_ids=has_ids,
            count_steps=count_steps,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, G, walk.blocks, walk.steps),
            in_specs=[queries, keys, keys, queries, rows, rows, *(ids if has_ids else ())],
            out_specs=[spec for spec, _ in outputs],
            scratch_shapes=[
                pltpu.VMEM((bq, H), q_BNTH.dtype),  # queries times their factor
                pltpu.VMEM((H, bq), f32),  # dq, transposed
                pltpu.VMEM((S, H), f32),  # dk
                pltpu.VMEM((S, H), f32),  # dv
            ],
        ),
        out_shape=[kind for _, kind in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=vmem_bytes,
        ),
        cost_estimate=pl.CostEstimate(
            flops=10 * B * N * T * min(walk.steps * bk, S) * H,
            transcendentals=B * N * T * min(walk.steps * bk, S),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q_BNTH, q_BNTH, dout_BNTH, *4 * (k_BKSH,))),
        ),
        name="flash_backward",
    )(ranges, offset_R, *operands)


def _kernel(
    ranges_ref,
    offset_ref,
    q_ref,
    k_ref,
    v_ref,
    dout_ref,
    lse_ref,
    delta_ref,
    *refs,
    tiles,
    walk,
    rows,
    first_key,
    has_ids,
    count_steps,
):
    q_ids_ref, k_ids_ref, *refs = refs if has_ids else (None, None, *refs)
    dq_ref, dk_ref, dv_ref, *refs = refs
    counts_ref, scaled_ref, dq_acc_ref, dk_acc_ref, dv_acc_ref = refs if count_steps else (None, *refs)
    row, group, i, step = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    is_last_step = step == walk.steps - 1

    @pl.when((group == 0) & (i == 0) & (step == 0))
    def start_keys():
        def zero(at):
            dk_acc_ref[at, :] = jnp.zeros_like(dk_acc_ref[at, :])
            dv_acc_ref[at, :] = jnp.zeros_like(dv_acc_ref[at, :])

        _for_rows(dk_acc_ref.shape[0], zero)

    @pl.when(step == 0)
    def start_queries():
        scaled_ref[...] = (q_ref[...].astype(f32) * tiles.query_factor).astype(scaled_ref.dtype)
        dq_acc_ref[...] = jnp.zeros_like(dq_acc_ref)
        if count_steps:
            counts_ref[...] = jnp.zeros_like(counts_ref)

    ranges = walk.read(ranges_ref, row, i)
    block = ranges.lo + step
    first_query = offset_ref[row if rows > 1 else 0] + i * tiles.block_q

    if count_steps:
        counts_ref[1:2, :] += walk.is_next_fetched(ranges_ref, row, i, step)

    def compute(is_masked: bool):
        def products(task):
            keys, queries = task
            return dot(k_ref[keys, :], scaled_ref[queries, :], NT), dot(v_ref[keys, :], dout_ref[queries, :], NT)

        def differentiate(task, both):
            (keys, queries), (products_kq, dweights_kq) = task, both
            logits_kq, tanh_kq = tiles.logits(products_kq)
            if is_masked:
                first = first_key + block * tiles.block_k
                logits_kq = tiles.mask(logits_kq, keys, queries, first, first_query, q_ids_ref, k_ids_ref)
            weights_kq = jnp.exp2(logits_kq - lse_ref[:, queries])
            dlogits_kq = weights_kq * (dweights_kq - delta_ref[:, queries])
            if tanh_kq is not None:
                dlogits_kq = dlogits_kq * (1 - tanh_kq * tanh_kq)
            return weights_kq.astype(dout_ref.dtype), dlogits_kq.astype(q_ref.dtype)

        def add(task, done):
            (keys, queries), (weights_kq, dlogits_kq) = task, done
            at = pl.ds(pl.multiple_of(block * tiles.block_k, tiles.block_k) + keys.start, tiles.sub_k)
            dv_acc_ref[at, :] += dot(weights_kq, dout_ref[queries, :], NN)
            dk_acc_ref[at, :] += dot(dlogits_kq, q_ref[queries, :], NN)
            dq_acc_ref[:, queries] += dot(k_ref[keys, :], dlogits_kq, TN)

        overlap(tiles.tasks(), products, differentiate, add)
        if count_steps:
            counts_ref[0:1, :] += 1

    is_full = (block >= ranges.full_lo) & (block < ranges.full_hi)
    if walk.has_full:
        pl.when(is_full)(partial(compute, False))
    if walk.has_partial:
        pl.when((block < ranges.hi) & ~is_full)(partial(compute, True))

    @pl.when(is_last_step)
    def end_queries():
        dq_ref[...] = (dq_acc_ref[...] * tiles.options.scale).astype(dq_ref.dtype).T

    @pl.when(is_last_step & (i == walk.blocks - 1) & (group == pl.num_programs(2) - 1))
    def end_keys():
        def write(at):
            dk_ref[at, :] = (dk_acc_ref[at, :] * tiles.options.scale).astype(dk_ref.dtype)
            dv_ref[at, :] = dv_acc_ref[at, :].astype(dv_ref.dtype)

        _for_rows(dk_acc_ref.shape[0], write)


def _for_rows(count: int, do) -> None:
    """Do something for 128 rows at a time, in a loop that stays one: unrolled it is most of the program."""

    def body(turn, _):
        do(pl.ds(pl.multiple_of(turn * LANES, LANES), LANES))

    lax.fori_loop(0, count // LANES, body, None)
