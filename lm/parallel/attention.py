"""Attention under `shard_map`: each device its own rows.

A kernel cannot be partitioned by the compiler at all, and a loop over rows would gather them on every device.
"""

import functools
import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.kernels.flash_attention import flash_attention
from lm.parallel.mesh import batch_axes


def make_attention(mesh: Mesh) -> Callable:
    """Return `lm.kernels.flash_attention.flash_attention` for arrays sharded over the mesh's batch axes."""
    attend = functools.partial(flash_attention, device_kind=mesh.devices.flat[0].device_kind)
    if mesh.size == 1:
        return attend
    axes = batch_axes(mesh)
    shards = math.prod(mesh.shape[axis] for axis in axes)

    def sharded(q_BTNH, k_BSKH, v_BSKH, *, q_segment_ids, kv_segment_ids, q_offset, **options):
        if q_BTNH.shape[0] % shards:  # a prompt or two: every device computes all of them
            ids = {"q_segment_ids": q_segment_ids, "kv_segment_ids": kv_segment_ids}
            return attend(q_BTNH, k_BSKH, v_BSKH, **ids, q_offset=q_offset, **options)

        def local(q_BTNH, k_BSKH, v_BSKH, ids, traced):
            offset = q_offset if traced is None else jax.lax.pcast(traced, axes, to="varying")
            return attend(q_BTNH, k_BSKH, v_BSKH, **ids, q_offset=offset, **options)

        rows, whole = PartitionSpec(axes), PartitionSpec()
        ids = {"q_segment_ids": q_segment_ids, "kv_segment_ids": kv_segment_ids}
        traced = None if isinstance(q_offset, int) else q_offset
        return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, rows, rows, whole), out_specs=rows)(
            q_BTNH, k_BSKH, v_BSKH, ids, traced
        )

    return sharded


def of_whole_rows(attention: Callable) -> Callable:
    """Return `attention` without its segment ids: for causal attention over rows that are one document each.

    A row's end may be padding, which the tokens before it do not see anyway. Without ids the blocks to visit are
    known while tracing.
    """

    def whole(*qkv, q_segment_ids, kv_segment_ids, **options):
        del q_segment_ids, kv_segment_ids
        return attention(*qkv, q_segment_ids=None, kv_segment_ids=None, **options)

    return whole
