"""What a source is and yields."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

from lm.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Document:
    """One document, or a piece of one.

    Attributes:
      text: what is trained on.
      id: where it comes from: a relative path, "file:line" or "file:row"; unique within its source.
      source: the source's name.
      url: where it was published, if known.
      start: bytes of the document before this text, where it was cut.
    """

    text: str
    id: str
    source: str = ""
    url: str | None = None
    start: int = 0


Source = Callable[[DataConfig], Iterator[Document]]


class Progress(Protocol):
    """Is told how far preparing data has come."""

    def __call__(self, stage: str, done: int, total: int | None = None, unit: str = "characters") -> None:
        """A stage is "train tokenizer", "tokenize", "download X", "verify X", or why a download waits.

        Args:
          stage: a new one begins when it changes.
          done: how many units.
          total: how many there will be, if known.
          unit: "characters", or "bytes" of a download.
        """
