"""Attention in blocks on TPUs: forward and fused backward in Pallas (Mosaic), for bf16 and f32.

The kernels are in `tpu_forward` and `tpu_backward`; here arrays are padded to whole blocks and to heads of whole
lanes, and transposed to heads first. The compiler lets the projections before and after write and read that layout:
no copy is left, where heads side by side, `[B, T, N * H]`, took one of every array.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp

from lm.kernels.flash_attention.options import MASKED, Options
from lm.kernels.flash_attention.plan import Plan, Ranges, make_plan
from lm.kernels.flash_attention.tpu_backward import backward_call
from lm.kernels.flash_attention.tpu_common import LANES, LOG2E, Tiles, largest_divisor, walk_of
from lm.kernels.flash_attention.tpu_forward import forward_call


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How a kernel cuts its work.

    Attributes:
      block_q, block_k: the most queries and keys of a grid step, multiples of 128.
      sub_q, sub_k: the most of a tile of logits in it.
      vmem_bytes: what a kernel may use of VMEM. A quarter of it is for the gradients of keys and values; more keys
        than fit are passed over in chunks, each of which reads all queries.
    """

    block_q: int = 1024
    block_k: int = 1024
    sub_q: int = 512
    sub_k: int = 256
    vmem_bytes: int = 64 * 2**20


def sizes_for(device_kind: str, row_bytes: int, *, is_backward: bool) -> Sizes:
    """Return the sizes with the shortest schedules (`experiments.benchmarks.tpu_schedule`) that fit into VMEM.

    Args:
      device_kind: as JAX names it; what is not a TPU's is taken for one of the newer.
      row_bytes: of one head of one token, padded to whole lanes.
    """
    old, square = (re.match(kinds, device_kind) is not None for kinds in ("TPU v[234]", "TPU v5"))
    block = 1024 if row_bytes <= 256 and not old else 512
    sub_k = (512 if is_backward else 128) if square else 256  # v5 multiplies by squares of 128, v6 by 256
    return Sizes(block, block, sub_k=sub_k, vmem_bytes=(16 if old else 64) * 2**20)


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_offset: jax.Array | int,
    options: Options,
    sizes: Sizes | None = None,
    *,
    count_steps: bool = False,
) -> tuple[jax.Array, ...]:
    """Return `out_BTNH` in q's type and the natural log-sum-exp `lse_BNT` in f32.

    Args:
      q_BTNH, k_BSKH, v_BSKH: bf16 or f32 of any length; K divides N.
      q_segment_ids, kv_segment_ids: `[B, T]` and `[B, S]`, or both None.
      q_offset: position of the first query among the keys: an int, a scalar or `[B]`.
      options: what else is asked.
      sizes: None: those of this TPU.
      count_steps: also return int32 `[B, N, q blocks, 2]`: key blocks computed and fetched, counted as they are.

    A query that sees no key gives out 0 and lse MASKED (-0.7 times the greatest f32).
    """
    (_, T, _, H), S = q_BTNH.shape, k_BSKH.shape[1]
    sizes = sizes or _sizes(q_BTNH, options, is_backward=False)
    tiles, plan = _tiles_and_plan(T, S, sizes, q_segment_ids, kv_segment_ids, q_offset, options)
    walk, ranges = walk_of(plan.of_queries, -(-S // tiles.block_k))
    out_BNTH, lse_BN1T, *counts = forward_call(
        _heads_first(q_BTNH, tiles.block_q),
        _heads_first(k_BSKH, tiles.block_k),
        _heads_first(v_BSKH, tiles.block_k),
        _padded_ids(q_segment_ids, tiles.block_q),
        _padded_ids(kv_segment_ids, tiles.block_k),
        ranges,
        jnp.asarray(q_offset, jnp.int32).reshape(-1),
        tiles=tiles,
        walk=walk,
        vmem_bytes=sizes.vmem_bytes,
        count_steps=count_steps,
    )
    return _heads_last(out_BNTH, T, H), lse_BN1T[:, :, 0, :T], *(_counts(c) for c in counts)


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_offset: jax.Array | int,
    lse_BNT: jax.Array,
    dout_BTNH: jax.Array,
    delta_BNT: jax.Array,
    options: Options,
    sizes: Sizes | None = None,
    *,
    count_steps: bool = False,
) -> tuple[jax.Array, ...]:
    """Return `dq_BTNH`, `dk_BSKH` and `dv_BSKH` in the types of q, k and v.

    Args:
      lse_BNT: what `forward` returned.
      dout_BTNH: gradient of out.
      delta_BNT: f32, the row sums of out * dout less the gradient of lse.
      count_steps: also return the counts of `forward`, summed over the chunks.

    The other arguments are those of `forward`. The order of all sums is fixed.
    """
    (_, T, _, H), S = q_BTNH.shape, k_BSKH.shape[1]
    sizes = sizes or _sizes(q_BTNH, options, is_backward=True)
    tiles, plan = _tiles_and_plan(T, S, sizes, q_segment_ids, kv_segment_ids, q_offset, options)
    # A query that sees no key meets masked logits only: any finite log-sum-exp gives it the weight 0.
    lse_BNT = jnp.where(lse_BNT <= MASKED / 2, 0.0, lse_BNT * LOG2E)
    q_BNTH, dout_BNTH = (_heads_first(x, tiles.block_q) for x in (q_BTNH, dout_BTNH))
    k_BKSH, v_BKSH = (_heads_first(x, tiles.block_k) for x in (k_BSKH, v_BSKH))
    q_ids_B1T, k_ids_B1S = _padded_ids(q_segment_ids, tiles.block_q), _padded_ids(kv_segment_ids, tiles.block_k)
    lse_BN1T, delta_BN1T = (_padded(x, 2, tiles.block_q)[:, :, None] for x in (lse_BNT, delta_BNT))

    num_blocks = k_BKSH.shape[2] // tiles.block_k
    bytes_per_key = q_BNTH.shape[3] * 2 * (4 + k_BKSH.dtype.itemsize)  # the sums and what they become
    chunk = min(num_blocks, max(1, sizes.vmem_bytes // 4 // (bytes_per_key * tiles.block_k)))
    dq_BNTH, dks, dvs, counts = None, [], [], None
    for start in range(0, num_blocks, chunk):
        blocks = min(chunk, num_blocks - start)
        keys = slice(start * tiles.block_k, (start + blocks) * tiles.block_k)
        walk, ranges = walk_of(_part(plan.of_queries, start, blocks), blocks)
        dq, dk, dv, *count = backward_call(
            q_BNTH,
            k_BKSH[:, :, keys],
            v_BKSH[:, :, keys],
            dout_BNTH,
            lse_BN1T,
            delta_BN1T,
            q_ids_B1T,
            None if k_ids_B1S is None else k_ids_B1S[:, :, keys],
            ranges,
            jnp.asarray(q_offset, jnp.int32).reshape(-1),
            tiles=tiles,
            walk=walk,
            first_key=keys.start,
            dq_dtype=q_BNTH.dtype if chunk == num_blocks else jnp.float32,
            vmem_bytes=sizes.vmem_bytes,
            count_steps=count_steps,
        )
        dq_BNTH = dq if dq_BNTH is None else dq_BNTH + dq
        dks.append(dk)
        dvs.append(dv)
        if count_steps:
            counts = _counts(count[0]) if counts is None else counts + _counts(count[0])
    dk_BKSH, dv_BKSH = (x[0] if len(x) == 1 else jnp.concatenate(x, 2) for x in (dks, dvs))
    gradients = (
        _heads_last(dq_BNTH, T, H).astype(q_BTNH.dtype),
        _heads_last(dk_BKSH, S, H),
        _heads_last(dv_BKSH, S, H),
    )
    return (*gradients, counts) if count_steps else gradients


def _sizes(q_BTNH: jax.Array, options: Options, *, is_backward: bool) -> Sizes:
    kind = jax.devices()[0].device_kind if options.device_kind is None else options.device_kind
    width = -(-q_BTNH.shape[-1] // LANES) * LANES
    return sizes_for(kind, width * q_BTNH.dtype.itemsize, is_backward=is_backward)


def _tiles_and_plan(T, S, sizes: Sizes, q_ids, k_ids, q_offset, options: Options) -> tuple[Tiles, Plan]:
    block_q, block_k = _even_block(T, sizes.block_q), _even_block(S, sizes.block_k)
    tiles = Tiles(
        options=options,
        block_q=block_q,
        block_k=block_k,
        sub_q=largest_divisor(block_q, sizes.sub_q),
        sub_k=largest_divisor(block_k, sizes.sub_k),
        num_keys=S if S % block_k else None,
    )
    masks = {"causal": options.causal, "window": options.window, "q_offset": q_offset}
    return tiles, make_plan(T, S, block_q, block_k, q_segment_ids=q_ids, kv_segment_ids=k_ids, **masks)


def _even_block(size: int, block: int) -> int:
    """Return the least block that takes no more blocks than `block` does, so that little is padded."""
    count = -(-size // block)
    granule = 2 * LANES if size > LANES and block % (2 * LANES) == 0 else LANES
    return -(-size // (count * granule)) * granule


def _part(ranges: Ranges, start: int, blocks: int) -> Ranges:
    """Return the ranges' part in `blocks` key blocks from `start`, counted from there."""
    return Ranges(*((field - start).clip(0, blocks) for field in ranges))


def _padded(x: jax.Array, axis: int, block: int, lanes: bool = False) -> jax.Array:
    """Pad an axis with zeros to whole blocks and, with `lanes`, the last to whole lanes."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % block)
    if lanes:
        padding[-1] = (0, -x.shape[-1] % LANES)
    return jnp.pad(x, padding) if any(after for _, after in padding) else x


def _padded_ids(ids_BT: jax.Array | None, block: int) -> jax.Array | None:
    return None if ids_BT is None else _padded(ids_BT.astype(jnp.int32), 1, block)[:, None]


def _heads_first(x_BTNH: jax.Array, block: int) -> jax.Array:
    """Return `[B, N, whole blocks of T, whole lanes of H]`."""
    return _padded(x_BTNH, 1, block, lanes=True).swapaxes(1, 2)


def _heads_last(x_BNTH: jax.Array, T: int, H: int) -> jax.Array:
    """Undo `_heads_first`."""
    return x_BNTH.swapaxes(1, 2)[:, :T, :, :H]


def _counts(counts: jax.Array) -> jax.Array:
    return counts[:, :, :, :2, 0]
