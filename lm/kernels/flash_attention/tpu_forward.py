"""The forward TPU kernel: online softmax in base 2 over the key blocks that a plan names.

Milakov & Gimelshein 2018 (online softmax), Dao 2023 (FlashAttention-2: divide by the sum once, at the end).
"""

import math
from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.kernels.flash_attention.options import MASKED
from lm.kernels.flash_attention.tpu_common import (
    LANES,
    LEAST_MAXIMUM,
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


def forward_call(
    q_BNTH,
    k_BKSH,
    v_BKSH,
    q_ids_B1T,
    k_ids_B1S,
    ranges,
    offset_R,
    *,
    tiles: Tiles,
    walk: Walk,
    vmem_bytes: int,
    count_steps: bool,
):
    """Run the kernel over whole blocks.

    Args:
      q_BNTH, k_BKSH, v_BKSH: H is a multiple of 128, and K divides N.
      q_ids_B1T, k_ids_B1S: int32 segment ids, or None.
      ranges: what `walk_of` returned; offset_R: int32 positions of the first query, R = 1 or B.
      vmem_bytes: what the kernel may use of VMEM.

    Returns:
      `out_BNTH`, natural `lse_BN1T` in f32 and, with `count_steps`, int32 `[B, N, q blocks, 8, 128]` whose [0, 0] is
      the number of computed steps and [1, 0] that of fetched key blocks.
    """
    (B, N, T, H), S = q_BNTH.shape, k_BKSH.shape[2]
    G = N // k_BKSH.shape[1]
    bq, bk = tiles.block_q, tiles.block_k

    def at_key_block(b, i, step, ranges_ref):
        return walk.key_block(ranges_ref, b, i, step)

    queries = pl.BlockSpec((None, None, bq, H), lambda b, n, i, step, *_: (b, n, i, 0))
    keys = pl.BlockSpec(
        (None, None, bk, H), lambda b, n, i, step, r, _: (b, lax.div(n, G), at_key_block(b, i, step, r), 0)
    )
    rows = pl.BlockSpec((None, None, 1, bq), lambda b, n, i, step, *_: (b, n, 0, i))
    has_ids = q_ids_B1T is not None
    ids = [
        pl.BlockSpec((None, 1, bq), lambda b, n, i, step, *_: (b, 0, i)),
        pl.BlockSpec((None, 1, bk), lambda b, n, i, step, r, _: (b, 0, at_key_block(b, i, step, r))),
    ]
    counts = pl.BlockSpec((None, None, None, SUBLANES, LANES), lambda b, n, i, step, *_: (b, n, i, 0, 0))
    operands = (q_BNTH, k_BKSH, v_BKSH, *((q_ids_B1T, k_ids_B1S) if has_ids else ()))
    typed = partial(varying_like, operands=(ranges, offset_R, *operands))
    outputs = [(queries, typed(q_BNTH.shape, q_BNTH.dtype)), (rows, typed((B, N, 1, T), f32))]
    if count_steps:
        outputs.append((counts, typed((B, N, walk.blocks, SUBLANES, LANES), jnp.int32)))
    return pl.pallas_call(
        partial(_kernel, tiles=tiles, walk=walk, rows=offset_R.shape[0], has_ids=has_ids, count_steps=count_steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, N, walk.blocks, walk.steps),
            in_specs=[queries, keys, keys, *(ids if has_ids else ())],
            out_specs=[spec for spec, _ in outputs],
            scratch_shapes=[
                pltpu.VMEM((bq, H), q_BNTH.dtype),  # queries times their factor
                pltpu.VMEM((1, bq), f32),  # maximum
                pltpu.VMEM((SUBLANES, bq), f32),  # sums, one per sublane
                pltpu.VMEM((H, bq), f32),  # output, transposed
            ],
        ),
        out_shape=[kind for _, kind in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * N * T * min(walk.steps * bk, S) * H,
            transcendentals=B * N * T * min(walk.steps * bk, S),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q_BNTH, q_BNTH, k_BKSH, v_BKSH)),
        ),
        name="flash_forward",
    )(ranges, offset_R, *operands)


def _kernel(ranges_ref, offset_ref, q_ref, k_ref, v_ref, *refs, tiles, walk, rows, has_ids, count_steps):
    q_ids_ref, k_ids_ref, *refs = refs if has_ids else (None, None, *refs)
    out_ref, lse_ref, *refs = refs
    counts_ref, scaled_ref, top_ref, sum_ref, acc_ref = refs if count_steps else (None, *refs)
    row, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def start():
        scaled_ref[...] = (q_ref[...].astype(f32) * tiles.query_factor).astype(scaled_ref.dtype)
        top_ref[...] = jnp.full_like(top_ref, LEAST_MAXIMUM)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)
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
            return dot(k_ref[keys, :], scaled_ref[queries, :], NT)

        def weigh(task, products_kq):
            keys, queries = task
            logits_kq, _ = tiles.logits(products_kq)
            if is_masked:
                first_key = block * tiles.block_k
                logits_kq = tiles.mask(logits_kq, keys, queries, first_key, first_query, q_ids_ref, k_ids_ref)
            before_1q = top_ref[:, queries]
            top_1q = jnp.maximum(before_1q, logits_kq.max(0, keepdims=True))
            weights_kq = jnp.exp2(logits_kq - top_1q)
            fade_1q = jnp.exp2(before_1q - top_1q)
            top_ref[:, queries] = top_1q
            sums_8q = weights_kq.reshape(-1, SUBLANES, tiles.sub_q).sum(0)
            sum_ref[:, queries] = sum_ref[:, queries] * fade_1q + sums_8q
            return weights_kq.astype(v_ref.dtype), fade_1q

        def add_values(task, weighed):
            (keys, queries), (weights_kq, fade_1q) = task, weighed
            acc_ref[:, queries] = acc_ref[:, queries] * fade_1q + dot(v_ref[keys, :], weights_kq, TN)

        overlap(tiles.tasks(), products, weigh, add_values)
        if count_steps:
            counts_ref[0:1, :] += 1

    is_full = (block >= ranges.full_lo) & (block < ranges.full_hi)
    if walk.has_full:
        pl.when(is_full)(partial(compute, False))
    if walk.has_partial:
        pl.when((block < ranges.hi) & ~is_full)(partial(compute, True))

    @pl.when(step == walk.steps - 1)
    def end():
        total_1q = sum_ref[...].sum(0, keepdims=True)
        sees_none_1q = total_1q == 0
        total_1q = jnp.where(sees_none_1q, 1.0, total_1q)
        lse_ref[...] = jnp.where(sees_none_1q, MASKED, top_ref[...] * math.log(2) + jnp.log(total_1q))
        out_ref[...] = (acc_ref[...] * (1 / total_1q)).T.astype(out_ref.dtype)
