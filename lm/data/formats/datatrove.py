"""datatrove's .ds: ids of 16 or 32 bits, a separator after each document; .ds.index: a uint64 per document, its end.

As its `TokenizedFile` writes them (github.com/huggingface/datatrove, pipeline/tokens/tokenizer.py).
"""

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.formats.stream import bare, pieces, split, written
from lm.data.shards import token_dtype
from lm.errors import DamagedFileError
from lm.tokenizer import Tokenizer

SUFFIX = ".ds"


def read(paths: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the documents of some files; without an index they are cut at separators."""
    for path in paths:
        if os.path.exists(f"{path}.index"):
            yield from _indexed(path, tokenizer)
        else:
            yield from split(pieces(path, token_dtype(tokenizer.vocab_size)), tokenizer)


def _indexed(path: str, tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    ends = np.fromfile(f"{path}.index", "<u8").astype(np.int64)
    count, size, name = int(ends[-1]) if len(ends) else 0, os.path.getsize(path), os.path.basename(path)
    if (
        os.path.getsize(f"{path}.index") % 8
        or size not in (2 * count, 4 * count)
        or (np.diff(ends, prepend=0) < 0).any()
    ):
        raise DamagedFileError(f'"{path}.index" does not fit the {size:,} bytes of "{path}": one of them is damaged.')
    if not count:
        return
    tokens, start = np.memmap(path, "<u2" if size == 2 * count else "<u4", "r"), 0
    for number, end in enumerate(ends.tolist()):
        document = bare(np.array(tokens[start:end]), name, tokenizer)
        if len(document):
            yield f"{name}:{number}", document
        start = end


def write(documents: Iterable[np.ndarray], path: str, tokenizer: Tokenizer) -> list[str]:
    """Write `PATH` and `PATH.index`."""
    dtype, end = token_dtype(tokenizer.vocab_size).newbyteorder("<"), 0
    with written(path, f"{path}.index") as (file, index):
        for document in documents:
            file.write(np.append(document, tokenizer.eot_id).astype(dtype).tobytes())
            end += len(document) + 1
            index.write(np.uint64(end).astype("<u8").tobytes())
    return [path, f"{path}.index"]
