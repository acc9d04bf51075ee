"""Files of a few named arrays, and the ids of documents that stand in them."""

import io
import zipfile

import numpy as np

from lm import storage
from lm.errors import DamagedFileError

_POSITION_BITS = np.uint64(32)


def write_arrays(path: str, **arrays: np.ndarray) -> None:
    """Write arrays as one .npz file, whole or not at all, the same bytes for the same arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # stored, not compressed: hashes do not compress; its time stamps are fixed
    storage.write_atomic(path, content.getvalue())


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Return a file's arrays by name.

    Raises:
      UsageError: there is no such file.
      DamagedFileError: it is truncated or holds something else.
    """
    content = storage.read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}. Remove it, and run the same command.') from error


def document_ids(part: int, positions: np.ndarray) -> np.ndarray:
    """Return ids, uint64, that order documents as the corpus does: by part, then by position in it."""
    return (np.uint64(part) << _POSITION_BITS) | np.asarray(positions, np.uint64)


def part_of(ids: np.ndarray) -> np.ndarray:
    """Return the parts of documents: int64."""
    return (ids >> _POSITION_BITS).astype(np.int64)


def position_of(ids: np.ndarray) -> np.ndarray:
    """Return the positions of documents in their parts: int64."""
    return (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)


def first_id(part: int) -> np.uint64:
    """Return the least id that a part's documents can have."""
    return np.uint64(part) << _POSITION_BITS


def split_by(values: np.ndarray, count: int, *columns: np.ndarray) -> list[list[np.ndarray]]:
    """Return for each value from 0 to count - 1 the entries of the columns that have it, in their order."""
    order = np.argsort(values, kind="stable")
    bounds = np.searchsorted(values[order], np.arange(count + 1))
    columns = [column[order] for column in columns]
    return [[column[start:end] for column in columns] for start, end in zip(bounds, bounds[1:], strict=False)]


def in_sorted(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return which values are among the members, which are sorted: bool."""
    if not len(members):
        return np.zeros(len(values), bool)
    at = np.searchsorted(members, values)
    return members[np.minimum(at, len(members) - 1)] == values
