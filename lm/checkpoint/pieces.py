"""Reading arrays piece by piece, many pieces at a time, with a bounded number of bytes under way. No JAX here."""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from lm.storage import is_remote

Index = tuple[slice, ...]
T = TypeVar("T")

# Bytes of stored chunks being read. A chunk needs room twice: as it is stored, and decoded.
IN_FLIGHT = 256 << 20
IN_FLIGHT_REMOTE = 1 << 30  # an object store answers late: more must be under way


def in_flight(path: str) -> int:
    """Return how many bytes of a checkpoint may be under way at a time."""
    return IN_FLIGHT_REMOTE if is_remote(path) else IN_FLIGHT


def pieces(store, index: Index | None = None) -> Iterator[tuple[int, Index]]:
    """Cut an array along its stored chunks: TensorStore decodes whole chunks, so each is to be read once.

    Args:
      store: a TensorStore, from `CheckpointReader.open`.
      index: the part of it that is wanted, without steps; None: all.

    Yields:
      (bytes, index): how much is decoded to read a piece, and where in the array it lies.
    """
    shape, chunk = store.shape, store.chunk_layout.read_chunk.shape or ()
    part = [s.indices(size)[:2] for s, size in zip(index or (slice(None),) * len(shape), shape, strict=True)]
    nbytes = math.prod(chunk) * store.dtype.numpy_dtype.itemsize
    along = [
        [slice(max(low, start), min(low + step, stop)) for low in range(start - start % step, stop, step)]
        for (start, stop), step in zip(part, chunk, strict=True)
    ]
    return ((nbytes, piece) for piece in itertools.product(*along))


def read_ahead(reads: Iterable[tuple[int, Callable[[], Callable[[], T]]]], limit: int) -> Iterator[T]:
    """Yield results in order, later reads under way while they fit.

    Args:
      reads: (bytes, start) of each; `start()` begins a read and returns what waits for its result.
      limit: bytes under way at a time, that of the result being used included; one read alone may be larger.
    """
    waiting: collections.deque[tuple[int, Callable[[], T]]] = collections.deque()
    held = 0
    for nbytes, start in reads:
        while waiting and held + nbytes > limit:
            size, finish = waiting.popleft()
            yield finish()
            held -= size
        waiting.append((nbytes, start()))
        held += nbytes
    while waiting:
        yield waiting.popleft()[1]()
