"""What the published filters have in common."""

import collections

from lm.corpus.filters.table import thresholds
from lm.corpus.record import Rejection


class Filter:
    """A document step with thresholds from the table.

    Args:
      language: of the documents, ISO 639-1; decides what a word and a sentence are.
      changes: thresholds by rule in place of the published ones, see `lm.corpus.filters.table`.

    Raises:
      ConfigError: an unknown rule.
    """

    name: str

    def __init__(self, language: str = "en", **changes: float):
        self.counts: collections.Counter[str] = collections.Counter()
        self._language, self._limits = language, thresholds(self.name, changes)

    def _reject(self, rule: str, value: float) -> Rejection:
        return Rejection(f"{self.name}/{rule}", round(value, 4))
