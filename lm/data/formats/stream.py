"""Flat streams of token ids: read in pieces of bounded size, cut at separators, written whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from lm.errors import DamagedFileError, LmError, UsageError
from lm.tokenizer import Tokenizer

_PIECE = 2**20  # tokens read at one time
_LONGEST = 2**28  # tokens of one document; longer ones would not be documents but a wrong separator


def pieces(path: str, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (file's name, tokens) of a file without a header, in order.

    Raises:
      DamagedFileError: it ends within a token.
      LmError: it cannot be read.
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    if os.path.getsize(path) % dtype.itemsize:
        raise DamagedFileError(f'"{path}" is truncated or of another format: {dtype.itemsize} bytes a token expected.')
    try:
        with open(path, "rb") as file:
            while len(tokens := np.fromfile(file, dtype, _PIECE)):
                yield os.path.basename(path), tokens
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


def split(stream: Iterable[tuple[str, np.ndarray]], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (where it begins, tokens) of the documents between separators, those that reach into the next file joined.

    Raises:
      UsageError: an id that the tokenizer does not have, or no separator where there should be many.
    """
    eot, begun, size, name, number = tokenizer.eot_id, [], 0, "", 0
    for file, tokens in stream:
        check_ids(tokens, file, tokenizer)
        start = 0
        for end in (*np.flatnonzero(tokens == eot).tolist(), len(tokens)):
            name = name if size else file
            if end > start:
                begun.append(tokens[start:end])
                size += end - start
            if end < len(tokens) and size:
                yield f"{name}:{number}", np.concatenate(begun)
                begun, size, number = [], 0, number + 1
            start = end + 1
        if size > _LONGEST:
            raise UsageError(
                f'"{file}" has no separator (id {eot}) in {size:,} tokens: give the tokenizer that it was made with.'
            )
    if size:
        yield f"{name}:{number}", np.concatenate(begun)


def bare(tokens: np.ndarray, file: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return a document, whose ends are known, without a separator before or after it."""
    check_ids(tokens, file, tokenizer)
    if len(tokens) and tokens[0] == tokenizer.eot_id:
        tokens = tokens[1:]
    if len(tokens) and tokens[-1] == tokenizer.eot_id:
        tokens = tokens[:-1]
    return tokens


def check_ids(tokens: np.ndarray, file: str, tokenizer: Tokenizer) -> None:
    """Raise a UsageError for ids that the tokenizer does not have."""
    if not len(tokens):
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= tokenizer.vocab_size:
        raise UsageError(
            f'"{file}" holds the token id {low if low < 0 else high}; the tokenizer {tokenizer.name} has '
            f"{tokenizer.vocab_size:,}: give the tokenizer that it was made with, and the file's format."
        )


@contextlib.contextmanager
def written(*paths: str) -> Iterator[list[BinaryIO]]:
    """Give open files that appear under these names at the end, in this order, or not at all.

    Raises:
      UsageError: there is such a file.
      LmError: they cannot be written.
    """
    for path in paths:
        if os.path.exists(path):
            raise UsageError(f'"{path}" exists; choose another --out.')
    temporary = [f"{path}.{uuid.uuid4().hex}.tmp" for path in paths]
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(name, "wb")) for name in temporary]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for name, path in zip(temporary, paths, strict=True):
            os.replace(name, path)
    except OSError as error:
        raise LmError(f'cannot write "{paths[0]}": {error.strerror or error}.') from error
    finally:
        for name in temporary:
            with contextlib.suppress(OSError):
                os.remove(name)
