"""The readers `text`, `jsonl` and `parquet`: documents that are text already."""

import codecs
import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lm import storage
from lm.corpus.config import SourceConfig
from lm.corpus.optional import require
from lm.corpus.readers import Skip
from lm.corpus.readers.inputs import name_of
from lm.corpus.readers.opening import TooLong, lines, open_input
from lm.corpus.record import Record
from lm.data.sources.parquet import BUFFER_BYTES, check_column, reading
from lm.errors import ConfigError, DamagedFileError, UsageError

MAX_TEXT_BYTES = 1 << 28  # of a text file
MAX_LINE_BYTES = 1 << 25  # of a line of JSON; parsed it takes several times as much
_FIRST = 100  # documents of which one must have a text
_BATCH_ROWS = 64

# Fields as C4 (url, timestamp), Dolma (id, source, created, added, metadata) and FineWeb (id, url, date, language) name
# them; the first of a kind that is there counts.
_URL = ("url", "URL", "uri")
_METADATA = {
    "id": ("id", "doc_id", "_id"),
    "source": ("source",),
    "date": ("created", "timestamp", "date", "added"),
    "title": ("title",),
    "license": ("license", "licence"),
    "language": ("language", "lang"),
}
_NESTED = "metadata"


def read_text(path: str, source: SourceConfig, skip: Skip) -> Iterator[Record]:
    """Yield the one record of a text file in UTF-8 (or UTF-16 with a byte order mark), compressed or not.

    `skip` is told of one that is neither, or larger than `MAX_TEXT_BYTES`; raises as `open_input`.
    """
    name = name_of(path, source)
    with open_input(path) as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        skip(name, f"more than {MAX_TEXT_BYTES:,} bytes")
        return
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        skip(name, f"not UTF-{16 if wide else 8} at byte {error.start:,}")
        return
    yield Record(name, text, metadata=_licensed({}, source))


def read_jsonl(path: str, source: SourceConfig, skip: Skip) -> Iterator[Record]:
    """Yield a record per JSON line, its text under `source.text_key`; ids are `file:line`.

    The line's own id, source, date, title, licence and language, as C4, Dolma and FineWeb name them, are metadata.

    Args:
      path: a local file or a URL, compressed or not.
      source: its `text_key`, and `license` of lines that name none.
      skip: is told of lines that are too long, not UTF-8, no JSON object, or without text.

    Raises:
      ConfigError: none of the first lines has such a field.
      DamagedFileError: truncated, corrupt, or none of the first lines is JSON.
      UsageError, LmError: as `open_input`.
    """
    name = name_of(path, source)
    check = _FirstLines(path, source.text_key)
    with open_input(path) as stream:
        for number, line in enumerate(lines(stream, MAX_LINE_BYTES), 1):
            where = f"{name}:{number}"
            if isinstance(line, TooLong):
                skip(where, f"a line of {line.bytes:,} bytes, more than {MAX_LINE_BYTES:,}")
                continue
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                skip(where, f"not UTF-8 at byte {error.start:,}")
                continue
            except (ValueError, RecursionError) as error:
                check.document(None)
                skip(where, f"not JSON: {error}")
                continue
            check.document(fields)
            if (record := _record(where, fields, source, skip)) is not None:
                yield record
    check.end()


def read_parquet(path: str, source: SourceConfig, skip: Skip) -> Iterator[Record]:
    """Yield a record per row, its text in the column `source.text_key`; ids are `file:row`.

    The columns that `read_jsonl` knows as fields are read too, others not.

    Raises:
      ConfigError: there is no such column, or it does not hold text.
      DamagedFileError: it cannot be read; all rows before have been yielded.
      UsageError, LmError: nothing is there, it cannot be opened, or pyarrow is not installed.
    """
    pq = require("pyarrow.parquet")
    name, row = name_of(path, source), 0
    known = {source.text_key, _NESTED, *_URL, *(key for keys in _METADATA.values() for key in keys)}
    with (
        reading(path, lambda: row),
        _opened(path) as raw,
        pq.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False) as file,
    ):
        check_column(path, file.schema_arrow, source.text_key, "text_key")
        columns = [column for column in file.schema_arrow.names if column in known]
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            for fields in batch.to_pylist():
                row += 1
                if (record := _record(f"{name}:{row}", fields, source, skip)) is not None:
                    yield record


def _opened(path: str):
    try:
        if not storage.is_remote(path):
            return open(path, "rb")
        with storage.of_store(path, "read"):
            return storage.filesystem(path).open(path, "rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f'no file "{path}". Check the path.') from error


class _FirstLines:
    """Finds out from the first documents of a file that it is not what the config says."""

    def __init__(self, path: str, key: str):
        self._path, self._key = path, key
        self._count, self._done = 0, False
        self._names: dict[str, None] = {}

    def document(self, fields: Any) -> None:
        """Take note of a line; `fields`: what it holds, None if it is no JSON."""
        if self._done:
            return
        self._count += 1
        if isinstance(fields, Mapping):
            self._done = isinstance(fields.get(self._key), str)
            self._names |= dict.fromkeys(fields)
        if self._count >= _FIRST:
            self.end()

    def end(self) -> None:
        """Raise if no document had a text."""
        if self._done or not self._count:
            return
        if not self._names:
            raise DamagedFileError(f'"{self._path}" holds no JSON lines: none of the first {self._count} is an object.')
        raise ConfigError(
            f"text_key={self._key!r}: none of the first {self._count} lines of "
            f'"{self._path}" has a text there. They have: {", ".join(list(self._names)[:20])}.'
        )


def _record(where: str, fields: Any, source: SourceConfig, skip: Skip) -> Record | None:
    """Return a document as a record, or None after saying why not."""
    if not isinstance(fields, Mapping):
        skip(where, f"not a JSON object but {type(fields).__name__}")
        return None
    text = fields.get(source.text_key)
    if not isinstance(text, str) or not text.strip():
        what = "an empty text" if isinstance(text, str) else f"{type(text).__name__}, not a text,"
        skip(where, f'{what} under "{source.text_key}"' if source.text_key in fields else f'no "{source.text_key}"')
        return None
    nested = fields.get(_NESTED)
    places = (fields, nested) if isinstance(nested, Mapping) else (fields,)
    found = {name: _first(places, keys) for name, keys in _METADATA.items()}
    metadata = {name: value for name, value in found.items() if value is not None}
    return Record(where, text, url=_first(places, _URL), metadata=_licensed(metadata, source))


def _first(places: tuple[Mapping, ...], keys: tuple[str, ...]) -> str | None:
    for place in places:
        for key in keys:
            value = place.get(key)
            if isinstance(value, datetime.date):
                return value.isoformat()
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                return str(value)
    return None


def _licensed(metadata: dict[str, str], source: SourceConfig) -> dict[str, str]:
    return {"license": source.license, **metadata} if source.license else metadata
