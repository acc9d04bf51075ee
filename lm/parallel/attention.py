"""Attention in a region: each device its own rows and heads, and its own part of a sequence.

A kernel cannot be partitioned by the compiler at all, and a loop over rows would gather them on every device.
"""

import functools
from collections.abc import Callable

from jax.sharding import Mesh, PartitionSpec

from lm.kernels.flash_attention import flash_attention
from lm.parallel.columns import is_split
from lm.parallel.mesh import batch_axes, batch_shards
from lm.parallel.region import manual_axes, region
from lm.parallel.ring import ring_attention
from lm.parallel.ulysses import ulysses_attention


def make_attention(mesh: Mesh, context_method: str = "ring") -> Callable:
    """Return `lm.kernels.flash_attention.flash_attention` for arrays sharded over the mesh: rows, heads, sequences.

    Args:
      mesh: the device mesh.
      context_method: `ring` or `ulysses`, how the parts of a sequence over the `context` axis attend to each other.

    Where the mesh divides sequences of this length, q, k and v are in the order in which `place_batch` lays them out
    (`lm.parallel.columns`). With a cache, and for other lengths, every device of the `context` axis has all of them.
    """
    kind = mesh.devices.flat[0].device_kind
    attend = functools.partial(flash_attention, device_kind=kind)
    if mesh.size == 1:
        return attend
    across = {
        "ring": functools.partial(ring_attention, device_kind=kind),
        "ulysses": functools.partial(ulysses_attention, attend),
    }[context_method]

    def sharded(q_BTNH, k_BSKH, v_BSKH, *, q_segment_ids, kv_segment_ids, q_offset, **options):
        # A prompt or two: every device computes all of them.
        rows = batch_axes(mesh) if manual_axes() or q_BTNH.shape[0] % batch_shards(mesh) == 0 else None
        heads = "tensor" if k_BSKH.shape[2] % mesh.shape["tensor"] == 0 else None
        traced = None if isinstance(q_offset, int) else q_offset
        T, S = q_BTNH.shape[1], k_BSKH.shape[1]
        divided = traced is None and q_offset == 0 and T == S and is_split(T, mesh.shape["context"])
        tokens = "context" if divided else None

        def local(q_BTNH, k_BSKH, v_BSKH, ids, traced):
            if divided:
                return across(q_BTNH, k_BSKH, v_BSKH, **ids, **options)
            offset = q_offset if traced is None else traced
            return attend(q_BTNH, k_BSKH, v_BSKH, **ids, q_offset=offset, **options)

        ids = {"q_segment_ids": q_segment_ids, "kv_segment_ids": kv_segment_ids}
        qkv = PartitionSpec(rows, tokens, heads)
        in_specs = (qkv, qkv, qkv, PartitionSpec(rows, tokens), PartitionSpec())
        return region(mesh, local, in_specs, qkv)(q_BTNH, k_BSKH, v_BSKH, ids, traced)

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
