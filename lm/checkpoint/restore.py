"""Reading a checkpoint's arrays onto the devices of any mesh."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lm.checkpoint import pieces
from lm.checkpoint.reader import CheckpointReader
from lm.tree import map_with_path

_ALIGNMENT = 64  # bytes: a numpy array that begins so becomes a CPU device's buffer without a copy


def restore_tree(reader: CheckpointReader, item: str, target: Any, *, in_flight: int | None = None) -> Any:
    """Read an item onto the devices: every device gets just its own part of each array.

    Beside the arrays themselves, and on accelerators one array's parts on the host, there is memory only for the
    stored chunks under way. The largest arrays are read first, while there is most room.

    Args:
      reader: an open checkpoint.
      item: e.g. `params`, or a part of one: `extra/ema`.
      target: tree of `jax.ShapeDtypeStruct` with shardings, of any mesh.
      in_flight: bytes of stored chunks under way; None: `lm.checkpoint.pieces`'s.

    Raises:
      DamagedFileError: an array cannot be read.
      ConfigError: the arrays are not the target's: one too many or too few, or of another shape or type.
    """
    item, _, part = item.partition("/")
    inside = f"{part}/" if part else ""
    wanted: dict[str, Any] = {}
    map_with_path(lambda path, leaf: wanted.__setitem__(inside + path, leaf), target)
    surplus = {path for path in reader.leaves(item) if path.startswith(inside)} - wanted.keys() if wanted else ()
    if surplus:
        raise reader.misfit(f"{item}/{min(surplus)} has no place in it")
    stores = reader.open_all(item, wanted)
    for path, leaf in wanted.items():
        store = stores[path]
        if tuple(store.shape) != leaf.shape or store.dtype.numpy_dtype != leaf.dtype:
            raise reader.misfit(
                f"{item}/{path} is {store.dtype.name}{list(store.shape)}, expected {leaf.dtype}{list(leaf.shape)}"
            )
    limit = in_flight or pieces.in_flight(reader.path)
    largest_first = sorted(wanted, key=lambda path: -math.prod(wanted[path].shape) * wanted[path].dtype.itemsize)
    reads = (read for path in largest_first for read in _reads(reader, item, path, stores.pop(path), wanted[path]))
    arrays = dict(done for done in pieces.read_ahead(reads, limit) if done)
    return map_with_path(lambda path, leaf: arrays[inside + path], target)


def _reads(reader: CheckpointReader, item: str, path: str, store, leaf: jax.ShapeDtypeStruct) -> Iterator:
    """Yield an array's reads for `read_ahead`; the last one's result is (path, array), that of the others None."""
    import tensorstore as ts

    # One read per distinct part; replicas share it.
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    parts = {_key(index, leaf.shape): index for index in indices}
    buffers = {key: _aligned([stop - start for start, stop in key], leaf.dtype) for key in parts}
    todo = [(nbytes, key, piece) for key, index in parts.items() for nbytes, piece in pieces.pieces(store, index)]

    def start(key, piece, is_last):
        place = tuple(slice(s.start - first, s.stop - first) for s, (first, _) in zip(piece, key, strict=True))
        future = ts.array(buffers[key], copy=False)[place].write(store[piece])

        def finish():
            reader.finish(item, path, future)
            return (path, on_devices()) if is_last else None

        return finish

    def on_devices():
        array = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: buffers[_key(index, leaf.shape)])
        return array.block_until_ready()  # on an accelerator the host's copy is free only now

    for number, (nbytes, key, piece) in enumerate(todo, 1):
        yield nbytes, functools.partial(start, key, piece, number == len(todo))


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + nbytes].view(dtype).reshape(shape)


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
