"""Parts: the files of records between stages."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.corpus.record import SUFFIX
from lm.corpus.task import Task


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of records, `prefix + SUFFIX`. A build's parts have an order: source by source, file by file.

    Attributes:
      prefix: its path without the suffix.
      source: the source's name.
      key: of the task that wrote it.
      documents, bytes: how many, and of how much text (UTF-8).
    """

    prefix: str
    source: str
    key: str
    documents: int
    bytes: int

    @property
    def path(self) -> str:
        return self.prefix + SUFFIX


def parts_after(parts: Sequence[Part], stage: Sequence[tuple[Task, Mapping[str, Any]]]) -> list[Part]:
    """Return the parts that a stage made of others, one of each: its tasks with their `lm.corpus.tally.Tally`'s stats."""
    return [
        Part(task.out, part.source, task.key, stats["steps"][-1]["documents"], stats["steps"][-1]["bytes"])
        for part, (task, stats) in zip(parts, stage, strict=True)
    ]
