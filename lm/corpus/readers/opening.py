"""Input files opened: local or at a URL, decompressed by what they hold, their damage found.

What a file is compressed with says its first bytes, never its name: gzip, bzip2, xz and zstd, each also as several
members in a row (multistream dumps, concatenated WARC records). Memory is bounded: neither a member that expands a
thousandfold nor a line of 200 MB is ever held as a whole.
"""

import bz2
import contextlib
import contextvars
import dataclasses
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from lm import storage
from lm.corpus.optional import require
from lm.errors import DamagedFileError, LmError, UsageError

_CHUNK = 1 << 16  # compressed bytes read, and uncompressed bytes made, at a time
_BUFFER = 1 << 18
_ZSTD_PIECE = 1 << 11  # zstd takes no limit of output; a piece can at most expand 32,768-fold
MAX_EXPANSION = 200.0  # text and markup expand 3 to 30-fold; a gzip of zeros 1,030-fold
EXPANSION_FLOOR = 1 << 26  # bytes: what is no larger than this may expand as it likes


_watcher: contextvars.ContextVar[Callable[[int], None]] = contextvars.ContextVar("watcher", default=lambda done: None)


@contextlib.contextmanager
def watched(report: Callable[[int], None]) -> Iterator[None]:
    """Have `report` told, within the block, how many bytes of a file have been read as they are stored (compressed)."""
    token = _watcher.set(report)
    try:
        yield
    finally:
        _watcher.reset(token)


@dataclasses.dataclass(frozen=True, slots=True)
class TooLong:
    """Stands for a line beyond the limit; `bytes`: its length without the line end."""

    bytes: int


@contextlib.contextmanager
def open_input(path: str, *, max_expansion: float = MAX_EXPANSION) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if it is compressed.

    The stream raises where the damage is: everything before it has been read by then. A `read(n)` that meets it returns
    what came before, as at the end of the file, and the next one raises: read until nothing comes.

    Args:
      path: a local file or a URL that fsspec knows.
      max_expansion: uncompressed bytes per compressed byte beyond which a file of more than `EXPANSION_FLOOR` bytes
        is refused as a bomb.

    Raises:
      UsageError: there is no such file, it is a folder, or a package is missing (s3fs, zstandard).
      LmError: it exists but cannot be read.
      DamagedFileError: from the stream: truncated, corrupt, or expands beyond the limit.
    """
    with _open(path) as raw, _Stream(_Content(path, raw, max_expansion), _BUFFER) as stream:
        yield stream


def lines(stream: BinaryIO, limit: int) -> Iterator[bytes | TooLong]:
    r"""Yield a stream's lines without their ends (`\n` or `\r\n`); a line beyond `limit` bytes is passed over.

    Raises:
      DamagedFileError, LmError: as the stream; the lines before have been yielded.
    """
    while line := stream.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line.removesuffix(b"\n").removesuffix(b"\r")
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := stream.readline(_BUFFER)):
            length += len(line)
        yield TooLong(length - line.endswith(b"\n"))


def check_sha256(path: str, expected: str | None = None) -> str:
    """Return the sha256 of a file as it is stored (compressed).

    Raises:
      UsageError, LmError: as `open_input`.
      DamagedFileError: it is not the one expected.
    """
    digest = hashlib.sha256()
    with _open(path) as raw, _translated(path):
        while chunk := raw.read(1 << 20):
            digest.update(chunk)
    if expected is not None and digest.hexdigest() != expected.lower():
        raise DamagedFileError(
            f'"{path}" has sha256 {digest.hexdigest()}, expected {expected}: it is damaged or another file. '
            "Get it again, or correct the checksum in the config."
        )
    return digest.hexdigest()


def _open(path: str) -> BinaryIO:
    with _translated(path):
        if not storage.is_remote(path):
            return open(path, "rb")
        sequential = (
            {"block_size": 0} if path.startswith(("http://", "https://")) else {}
        )  # not all servers know ranges
        return storage.filesystem(path).open(path, "rb", **sequential)


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn what opening and reading raise into one line."""
    try:
        with storage.of_store(path, "read") if storage.is_remote(path) else contextlib.nullcontext():
            yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f'no file "{path}". Check the path.') from error
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


class _Gzip:
    """zlib's decompressor with the interface that those of bz2 and lzma have."""

    def __init__(self):
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstd:
    """The same of zstandard's, in pieces small enough that none becomes large."""

    def __init__(self):
        zstandard = require("zstandard")
        self._inner = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # `zstd --long=31` too
        self._waiting = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._waiting

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    def decompress(self, data: bytes, max_length: int) -> bytes:
        data = self._waiting + data
        self._waiting = data[_ZSTD_PIECE:]
        return self._inner.decompress(data[:_ZSTD_PIECE])


_FORMATS = (  # name, a member's first bytes, decompressor
    ("gzip", re.compile(rb"\x1f\x8b"), _Gzip),
    ("bzip2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    ("xz", re.compile(rb"\xfd7zXZ\x00"), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    ("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _Zstd),  # a frame, or one to be skipped
)
_MAGIC_BYTES = 10
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


class _Content(io.RawIOBase):
    """A file's content, decompressed. Its first error is raised again by every later read."""

    def __init__(self, path: str, raw: BinaryIO, max_expansion: float):
        self._path, self._raw, self._max_expansion = path, raw, max_expansion
        self._read_bytes = self._made_bytes = 0
        self._made = memoryview(b"")
        self._error: LmError | None = None
        self._decompressor = None
        self._input = self._more(_MAGIC_BYTES)
        self._format = next((entry for entry in _FORMATS if entry[1].match(self._input)), None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self._error:
            raise self._error
        try:
            if not self._made:
                self._made = memoryview(self._decompressed() if self._format else self._plain())
        except LmError as error:
            self._error = error
            raise
        count = min(len(buffer), len(self._made))
        buffer[:count] = self._made[:count]
        self._made = self._made[count:]
        return count

    def _more(self, size: int) -> bytes:
        """Return at least `size` bytes of the file as stored, fewer at its end."""
        parts = []
        while size > 0:
            with _translated(self._path):
                part = self._raw.read(max(size, _CHUNK))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        data = b"".join(parts)
        self._read_bytes += len(data)
        _watcher.get()(self._read_bytes)
        return data

    def _plain(self) -> bytes:
        data, self._input = self._input or self._more(1), b""
        if not self._read_bytes and self._path.endswith(_SUFFIXES):
            raise self._damaged("a compressed file is never empty")
        self._made_bytes += len(data)
        return data

    def _decompressed(self) -> bytes:
        """Return the next bytes, none at the end."""
        name, magic, make = self._format
        while True:
            if self._decompressor is None:
                while len(self._input) < _MAGIC_BYTES and (data := self._more(_MAGIC_BYTES)):
                    self._input = (self._input + data).lstrip(b"\0")  # padding between members and after the last
                if not self._input.lstrip(b"\0"):
                    return b""
                if not magic.match(self._input):
                    raise self._damaged(f"something else follows its {name} content, or a part of it was lost")
                self._decompressor = make()
            inner = self._decompressor
            if inner.needs_input and not self._input and not (data := self._more(1)):
                raise self._damaged(f"its {name} content ends early: it is truncated")
            elif inner.needs_input and not self._input:
                self._input = data
            made = self._step(name, inner)
            if made:
                self._made_bytes += len(made)
                if self._made_bytes > max(EXPANSION_FLOOR, self._max_expansion * self._read_bytes):
                    raise self._damaged(f"it expands more than {self._max_expansion:g}-fold: not a corpus but a bomb")
                return made

    def _step(self, name: str, inner) -> bytes:
        data, self._input = (self._input, b"") if inner.needs_input else (b"", self._input)
        try:
            made = inner.decompress(data, max_length=_CHUNK)
        except Exception as error:  # zlib.error, OSError, LZMAError, ZstdError: whatever it is, the content is damaged
            if isinstance(error, LmError | MemoryError):
                raise
            raise self._damaged(f"its {name} content is corrupt ({error})") from error
        if inner.eof:
            self._input, self._decompressor = inner.unused_data + self._input, None
        return made

    def _damaged(self, reason: str) -> DamagedFileError:
        return DamagedFileError(
            f'"{self._path}" is damaged after {self._made_bytes:,} bytes of content: {reason}. Get it again.'
        )


class _Stream(io.BufferedReader):
    """Buffered, and an error in the middle of a `read` waits until what came before it has been handed out."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return super().read()
        parts: list[bytes] = []
        while size > 0:
            try:
                part = self.read1(size)
            except LmError:
                if not parts:
                    raise
                break
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
