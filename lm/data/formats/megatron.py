"""Megatron-LM's .bin and .idx (GPT-NeoX and NeMo read them too): ids, a separator after each document, and an index.

The index: `MMIDIDX\\0\\0`, u64 version 1, u8 code of the ids' type, u64 sequences, u64 document bounds, int32 lengths of the
sequences, int64 positions in bytes, int64 sequences before each document and of all
(github.com/NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py).
"""

import array
import os
import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.formats.stream import bare, written
from lm.errors import DamagedFileError, UsageError
from lm.tokenizer import Tokenizer

SUFFIX = ".idx"
_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")
_CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floating point


def read(paths: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the documents of some pairs of files, given by their .idx; a document's sequences are joined."""
    for path in paths:
        bin_path = path.removesuffix(SUFFIX) + ".bin"
        if not os.path.exists(bin_path):
            raise UsageError(f'no "{bin_path}" beside "{path}".')
        dtype, lengths, positions, bounds = _index(path)
        size, name = os.path.getsize(bin_path), os.path.basename(path)
        ends = positions + lengths.astype(np.int64) * dtype.itemsize
        if len(ends) and (
            positions.min() < 0 or lengths.min() < 0 or ends.max() > size or (positions % dtype.itemsize).any()
        ):
            raise DamagedFileError(f'"{path}" does not fit the {size:,} bytes of "{bin_path}": one of them is damaged.')
        tokens = np.memmap(bin_path, dtype, "r") if size >= dtype.itemsize else np.zeros(0, dtype)
        firsts = positions // dtype.itemsize
        for number in range(len(bounds) - 1):
            parts = [tokens[firsts[s] : firsts[s] + lengths[s]] for s in range(bounds[number], bounds[number + 1])]
            document = bare(np.concatenate(parts) if parts else np.zeros(0, dtype), name, tokenizer)
            if len(document):
                yield f"{name}:{number}", document


def _index(path: str) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids' type, and the lengths, byte positions and document bounds of the sequences."""
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC) + _HEAD.size)
    if len(head) < len(_MAGIC) + _HEAD.size or not head.startswith(_MAGIC):
        raise DamagedFileError(f'"{path}" is not an index of Megatron\'s format.')
    version, code, sequences, count = _HEAD.unpack(head[len(_MAGIC) :])
    if version != 1 or code not in _CODES:
        raise DamagedFileError(
            f'"{path}" is an index of version {version} with ids of type {code}, which is not known.'
        )
    at = [len(head), len(head) + 4 * sequences, len(head) + 12 * sequences]
    if os.path.getsize(path) < at[2] + 8 * count:
        raise DamagedFileError(f'"{path}" is truncated.')
    lengths, positions, bounds = (
        np.fromfile(path, kind, number, offset=offset)
        for kind, number, offset in zip(("<i4", "<i8", "<i8"), (sequences, sequences, count), at, strict=True)
    )
    if not count or bounds[0] != 0 or bounds[-1] != sequences or (np.diff(bounds) < 0).any():
        raise DamagedFileError(f'"{path}" is damaged: its document bounds are not those of {sequences:,} sequences.')
    return np.dtype(_CODES[code]), lengths, positions, bounds


def write(documents: Iterable[np.ndarray], path: str, tokenizer: Tokenizer) -> list[str]:
    """Write `PATH.bin` and `PATH.idx`, a sequence per document; ids as Megatron chooses their type."""
    code = 8 if tokenizer.vocab_size < 65500 else 4
    dtype, prefix = np.dtype(_CODES[code]), path.removesuffix(SUFFIX).removesuffix(".bin")
    lengths = array.array("i")  # 4 bytes a document
    with written(f"{prefix}.bin", f"{prefix}.idx") as (file, index):
        for document in documents:
            file.write(np.append(document, tokenizer.eot_id).astype(dtype).tobytes())
            lengths.append(len(document) + 1)
        sizes = np.array(lengths, "<i4")
        positions = (np.cumsum(sizes, dtype=np.int64) - sizes) * dtype.itemsize
        index.write(_MAGIC + _HEAD.pack(1, code, len(sizes), len(sizes) + 1))
        for part in (sizes, positions.astype("<i8"), np.arange(len(sizes) + 1, dtype="<i8")):
            index.write(part.tobytes())
    return [f"{prefix}.bin", f"{prefix}.idx"]
