"""Where a shard's documents come from: `X.docs` beside `X.bin`, gzipped JSON lines, one per document.

A line holds what is known of `id`, `source`, `url` and `start` (bytes of the document before this piece of it). It is
no part of the data's identity: the same text from elsewhere is the same data.
"""

import gzip
import io
import json
import os
from typing import Any

from lm.data.document import Document
from lm.errors import DamagedFileError, LmError

_FIELDS = ("id", "source", "url", "start")


class OriginWriter:
    """Writes the sidecar of one shard. A shard none of whose documents says where it comes from gets none."""

    def __init__(self, path: str):
        self.path = path
        self._raw = open(path, "wb")  # noqa: SIM115 (open until the shard is full)
        self._lines = gzip.GzipFile("", "wb", 6, self._raw, mtime=0)  # neither name nor time: the same bytes each time
        self._any = False

    def add(self, origin: Document | None) -> None:
        """Write a document's line."""
        known = {name: getattr(origin, name) for name in _FIELDS if getattr(origin, name, None)}
        self._any |= bool(known)
        self._lines.write((json.dumps(known, ensure_ascii=False, separators=(",", ":")) + "\n").encode())

    def close(self, keep: bool = True) -> bool:
        """Finish the file; return whether it stays."""
        self._lines.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()
        if not (keep and self._any):
            os.remove(self.path)
        return keep and self._any


def docs_path(path: str) -> str:
    """Return the sidecar of a shard."""
    return path.removesuffix(".bin") + ".docs"


def read_origins(path: str, numbers: set[int]) -> dict[int, dict[str, Any]]:
    """Return what is known of some documents of a shard, by their numbers.

    Args:
      path: of the sidecar; one that is not there says nothing.
      numbers: of the documents in the shard, from 0.

    Raises:
      DamagedFileError: it cannot be read as what it is, or has too few lines.
      LmError: it cannot be read.
    """
    found: dict[int, dict[str, Any]] = {}
    if not os.path.exists(path):
        return found
    last = max(numbers, default=-1)
    try:
        with gzip.open(path, "rb") as file, io.BufferedReader(file) as lines:
            for number, line in enumerate(lines):
                if number in numbers:
                    found[number] = dict(json.loads(line))
                if number >= last:
                    return found
    except (EOFError, gzip.BadGzipFile, ValueError, TypeError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}. Build the data again.') from error
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error
    if last in found or last < 0:
        return found
    raise DamagedFileError(f'"{path}" is damaged: it ends before document {last}. Build the data again.')
