"""Token shards: flat tokens behind llm.c's header, and a sidecar of document ends.

`X.bin` is 256 int32 (magic, version, number of tokens, zeros) and the tokens: magic 20240520 version 1
for uint16, 20240801 version 7 for uint32 (github.com/karpathy/llm.c). `X.ends` is a uint64 per document:
the position after its last token. A document is `[eot] + tokens`; one more eot closes the shard, so that
every document's last token has a next token to predict, and it belongs to no document.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm.data.document import Document
from lm.data.provenance import OriginWriter, docs_path
from lm.errors import DamagedFileError, LmError, UsageError

_HEADER = 256  # int32 values
_KINDS = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}
_DTYPES = {kind: dtype for dtype, kind in _KINDS.items()}


@dataclasses.dataclass(frozen=True)
class Shard:
    """A stream of tokens with its documents, in memory or mapped from a file.

    Attributes:
      tokens: uint16 or uint32 [tokens + 1]; the last one is the closing eot.
      ends: uint64 [documents]; `ends[-1] == len(tokens) - 1`.
      verification: of its files, where that goes on in the background (`lm.data.verification`).
    """

    tokens: np.ndarray
    ends: np.ndarray
    verification: Any = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are in documents, each of which has a next token: the closing eot is not counted."""
        return len(self.tokens) - 1

    @property
    def starts(self) -> np.ndarray:
        """The position of each document's first token: int64 [documents]."""
        return np.concatenate([[0], self.ends[:-1].astype(np.int64)]) if len(self.ends) else np.zeros(0, np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per document, its eot included: int64 [documents]."""
        return self.ends.astype(np.int64) - self.starts

    def check(self, wait: bool = False) -> None:
        """Raise a DamagedFileError if its files are known to be damaged; `wait` until that is known."""
        if self.verification is not None:
            self.verification.check(wait)

    @staticmethod
    def from_documents(documents: Iterable[np.ndarray], eot_id: int) -> "Shard":
        """Return a shard in memory from documents that begin with eot."""
        documents = list(documents)
        ends = np.cumsum([len(document) for document in documents], dtype=np.uint64)
        return Shard(np.concatenate([*documents, np.array([eot_id], np.uint32)]).astype(np.uint32), ends)

    @staticmethod
    def open(path: str, expected: Mapping[str, Any] | None = None) -> "Shard":
        """Map a shard `X.bin` and its `X.ends` from disk; sizes and the header are checked, not the content.

        Args:
          path: of the `.bin` file.
          expected: its entry of the manifest, of which `tokens` and `documents` count.

        Raises:
          UsageError: a file is missing.
          DamagedFileError: it is truncated, not a shard, or not what the manifest says.
        """
        expected = expected or {}
        tokens = map_tokens(path)
        ends = _map_ends(ends_path(path))
        if not len(tokens) or (int(ends[-1]) if len(ends) else 0) != len(tokens) - 1:
            raise DamagedFileError(f'"{ends_path(path)}" does not fit the {len(tokens):,} tokens of "{path}".')
        for name, actual in (("tokens", len(tokens) - 1), ("documents", len(ends))):
            if expected.get(name, actual) != actual:
                raise DamagedFileError(f'"{path}" has {actual:,} {name}, its manifest says {expected[name]:,}.')
        return Shard(tokens, ends)


def ends_path(path: str) -> str:
    """Return the document-ends file of a shard."""
    return path.removesuffix(".bin") + ".ends"


def file_sha256(path: str) -> str:
    """Return a file's sha256 (about 1 GB/s)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: str, sha256: str) -> None:
    """Compare a file's sha256 with what it must be.

    Raises:
      DamagedFileError: it is another one.
      LmError: the file cannot be read.
    """
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error
    if actual != sha256:
        raise DamagedFileError(
            f'"{path}" was changed or damaged: its sha256 is not the one in its manifest. Build it again.'
        )


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 where every id fits in it, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def header_bytes(dtype: np.dtype, count: int) -> bytes:
    """Return llm.c's header of a file of `count` tokens."""
    header = np.zeros(_HEADER, "<i4")
    header[:3] = (*_KINDS[np.dtype(dtype)], count)
    return header.tobytes()


def map_tokens(path: str) -> np.ndarray:
    """Map the tokens of a file with llm.c's header; raises as `Shard.open`."""
    try:
        size = os.path.getsize(path)
        header = np.fromfile(path, "<i4", _HEADER)
    except FileNotFoundError as error:
        raise UsageError(f'no shard "{path}".') from error
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error
    dtype = _DTYPES.get((int(header[0]), int(header[1]))) if len(header) == _HEADER else None
    if dtype is None:
        raise DamagedFileError(f'"{path}" is not a token shard: its header is missing or of another format.')
    count, actual = int(header[2]), (size - 4 * _HEADER) / dtype.itemsize
    if count != actual:
        what = "truncated" if actual < count else "longer than its header says"
        raise DamagedFileError(f'"{path}" is {what}: {actual:,.0f} of {count:,} tokens. Build it again.')
    if not count:
        return np.zeros(0, dtype)
    mapped = np.memmap(path, dtype.newbyteorder("<"), "r", offset=4 * _HEADER, shape=(count,))
    return mapped.view(np.ndarray)  # still mapped; indexing the subclass costs more


def _map_ends(path: str) -> np.ndarray:
    try:
        return np.fromfile(path, "<u8")
    except FileNotFoundError as error:
        raise DamagedFileError(f'"{path}" is missing: the shard beside it cannot be read without it.') from error
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


class ShardWriter:
    """Writes one split as numbered shards, a document at a time.

    A shard is closed at the first document end at or after `max_tokens`. `close` returns the shards' entries of the
    manifest. Raises OSError where the disk does; the caller names the folder.
    """

    def __init__(
        self, folder: str, name: str, dtype: np.dtype, eot_id: int, token_bytes_V: np.ndarray, max_tokens: int
    ):
        """Prepare to write `NAME-00000.bin`, … into a folder; `max_tokens` of each, about."""
        self._folder, self._name, self._eot_id = folder, name, eot_id
        self._dtype, self._token_bytes_V, self._max_tokens = np.dtype(dtype), token_bytes_V, max_tokens
        self._file = None
        self._shards: list[dict[str, Any]] = []

    def add(self, document: np.ndarray, origin: Document | None = None) -> None:
        """Append one document: `[eot] + tokens`, and where it comes from, if that is known."""
        if self._file is None:
            self._path = os.path.join(self._folder, f"{self._name}-{len(self._shards):05d}.bin")
            self._file = open(self._path, "wb")  # noqa: SIM115 (open until the shard is full)
            self._file.write(bytes(4 * _HEADER))  # the header comes last, when the count is known
            self._origins = OriginWriter(docs_path(self._path))
            self._tokens, self._bytes, self._ends = 0, 0, []
        self._file.write(document.astype(self._dtype).tobytes())
        self._origins.add(origin)
        self._tokens += len(document)
        self._bytes += int(self._token_bytes_V[document].sum())
        self._ends.append(self._tokens)
        if self._tokens >= self._max_tokens:
            self._finish_shard()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard and return the entries of all: `file`, `documents`, `tokens`, `bytes` and hashes."""
        if self._file is not None:
            self._finish_shard()
        return self._shards

    def abort(self) -> None:
        """Close the open files; the folder is thrown away."""
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(OSError):
                self._origins.close(keep=False)

    def _finish_shard(self) -> None:
        self._file.write(np.array([self._eot_id], self._dtype).tobytes())
        self._file.seek(0)
        self._file.write(header_bytes(self._dtype, self._tokens + 1))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        np.array(self._ends, "<u8").tofile(ends_path(self._path))
        entry = {
            "file": os.path.basename(self._path),
            "documents": len(self._ends),
            "tokens": self._tokens,
            "bytes": self._bytes,
            "sha256": file_sha256(self._path),
            "ends_sha256": file_sha256(ends_path(self._path)),
        }
        if self._origins.close():
            entry["docs_sha256"] = file_sha256(docs_path(self._path))
        self._shards.append(entry)
