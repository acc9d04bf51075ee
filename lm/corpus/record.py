"""Documents between stages: records, and the zstd-compressed JSON lines that hold them."""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from lm import storage
from lm.errors import DamagedFileError
from lm.tokenizer.tokenizer import valid_unicode

SUFFIX = ".jsonl.zst"
_LEVEL = 3


@dataclasses.dataclass(slots=True)
class Record:
    """One document on its way through the stages.

    Attributes:
      id: unique within its source.
      text: what will be trained on; to a markup's renderer, still markup.
      source: the source's name in the config.
      url: where it was published, if known.
      metadata: anything else, as JSON: `title`, `language`, `license`, `quality`, …
    """

    id: str
    text: str
    source: str = ""
    url: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """Why a document was dropped: the rule, as `filter/rule`, and the value that broke it."""

    rule: str
    value: float | str | None = None


class Step(Protocol):
    """A document step: what is done to one document after another.

    Attributes:
      name: of the step, as the card calls it.
      counts: changes made so far, by what they are.
    """

    name: str
    counts: Mapping[str, int]

    def __call__(self, record: Record) -> Rejection | None:
        """Return why the document is dropped, or None; may change it in place."""


def utf8_bytes(text: str) -> int:
    """Return how many bytes a text takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def encode_records(records: Iterable[Record]) -> bytes:
    """Return records as zstd-compressed JSON lines, the same bytes for the same records."""
    import zstandard

    lines = (json.dumps(dataclasses.asdict(record), ensure_ascii=False, separators=(",", ":")) for record in records)
    content = b"".join((valid_unicode(line) + "\n").encode() for line in lines)
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(content)


def write_records(path: str, records: Iterable[Record]) -> None:
    """Write a file of records, whole or not at all; raises LmError as `storage.write_atomic`."""
    storage.write_atomic(path, encode_records(records))


def read_records(path: str) -> Iterator[Record]:
    """Yield a file's records in order.

    Raises:
      UsageError: there is no such file.
      DamagedFileError: it is truncated or holds something else.
    """
    import zstandard

    content = storage.read_bytes(path)
    try:
        # Whole, since parts are small: a stream would take a truncated frame for a short one.
        for line in io.BytesIO(zstandard.ZstdDecompressor().decompress(content)):
            yield Record(**json.loads(line))
    except (zstandard.ZstdError, ValueError, TypeError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}. Remove it, and run the same command.') from error
