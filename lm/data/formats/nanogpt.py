"""nanoGPT's .bin: uint16 ids and nothing else, a separator after each document (github.com/karpathy/nanoGPT, data/)."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.formats.stream import pieces, split, written
from lm.errors import UsageError
from lm.tokenizer import Tokenizer

SUFFIX = ".bin"


def read(paths: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the documents of some files, as one stream."""
    return split((piece for path in paths for piece in pieces(path, np.uint16)), tokenizer)


def write(documents: Iterable[np.ndarray], path: str, tokenizer: Tokenizer) -> list[str]:
    """Write one file; raises UsageError where ids do not fit into 16 bits."""
    if tokenizer.vocab_size > 2**16:
        raise UsageError(f"nanoGPT's format has 16 bits a token; the tokenizer has {tokenizer.vocab_size:,} ids.")
    with written(path) as (file,):
        for document in documents:
            file.write(np.append(document, tokenizer.eot_id).astype("<u2").tobytes())
    return [path]
