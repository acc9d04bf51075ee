"""llm.c's .bin (modded-nanogpt's too): a header of 256 int32, then ids, a separator before each document.

Our shards are such files already, with document ends beside them; see lm/data/shards.py.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.formats.stream import split, written
from lm.data.shards import header_bytes, map_tokens, token_dtype
from lm.errors import UsageError
from lm.tokenizer import Tokenizer

SUFFIX = ".bin"
_PIECE = 2**20  # tokens


def read(paths: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the documents of some files, as one stream: llm.c cuts them where a file is full."""

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for path in paths:
            tokens = map_tokens(path)
            for start in range(0, len(tokens), _PIECE):
                yield os.path.basename(path), tokens[start : start + _PIECE]

    return split(stream(), tokenizer)


def write(documents: Iterable[np.ndarray], path: str, tokenizer: Tokenizer) -> list[str]:
    """Write one file; raises UsageError where it would have more tokens than its header can say."""
    dtype, count = token_dtype(tokenizer.vocab_size), 0
    with written(path) as (file,):
        file.write(header_bytes(dtype, 0))
        for document in documents:
            count += 1 + len(document)
            if count >= 2**31:
                raise UsageError(
                    "an llm.c file holds fewer than 2^31 tokens; the folder's own .bin files are llm.c files, use them."
                )
            file.write(np.insert(document.astype(dtype), 0, tokenizer.eot_id).astype(dtype.newbyteorder("<")).tobytes())
        file.seek(0)
        file.write(header_bytes(dtype, count))
    return [path]
