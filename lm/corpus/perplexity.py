"""Perplexity: how surprising a document is to a language model, as CCNet chose its pages (Wenzek et al. 2020).

Perplexity per token compares only under one tokenizer; bits per byte compare under all. So the threshold is in bits per
byte, -log2 p(document) / bytes of UTF-8, the end of the document included, and the perplexity on record is per byte:
2 to that power. English prose has 0.6 to 1.2 bits per byte under trained models of any size, 8 is random bytes.
"""

import collections
import math
from collections.abc import Callable, Sequence

from lm.corpus.record import Record, Rejection

Score = Callable[[list[str]], list[float]]


class Perplexity:
    """The document step that scores documents with a model that is handed in; sets `perplexity` (per byte).

    Rejection `perplexity/high`, above the threshold; value: bits per byte.

    Args:
      score: texts -> bits per byte of each, infinite for one without a byte (`lm.evaluate.document_scores`).
      max_bits_per_byte: None: any.
    """

    name = "perplexity"

    def __init__(self, score: Score, max_bits_per_byte: float | None = None):
        self._score, self._max = score, max_bits_per_byte
        self._scored: dict[tuple[str, str], tuple[str, float]] = {}
        self.counts: collections.Counter = collections.Counter()

    def prepare(self, records: Sequence[Record]) -> None:
        """Score records together, in full batches; a call with one of them then takes what is known, if its text is the same."""
        self._scored.clear()  # of those that an earlier step dropped
        bits = self._score([record.text for record in records])
        for record, own in zip(records, bits, strict=True):
            self._scored[record.source, record.id] = (record.text, own)

    def __call__(self, record: Record) -> Rejection | None:
        text, bits = self._scored.pop((record.source, record.id), (None, 0.0))
        if text != record.text:
            (bits,) = self._score([record.text])
        record.metadata["perplexity"] = round(2**bits, 4) if math.isfinite(bits) else None
        if self._max is not None and not bits <= self._max:
            return Rejection("perplexity/high", round(bits, 4) if math.isfinite(bits) else None)
        return None
