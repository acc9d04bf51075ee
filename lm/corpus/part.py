"""Parts: the files of records between stages."""

import dataclasses

from lm.corpus.record import SUFFIX


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
