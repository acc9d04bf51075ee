"""Perplexity: the threshold is in bits per byte, and records are scored in batches where they come together."""

import math

from lm.corpus.perplexity import Perplexity
from lm.corpus.record import Record


def of_length(calls):
    def score(texts):
        calls.append(list(texts))
        return [float(len(text)) if text else math.inf for text in texts]

    return score


def test_documents_above_the_threshold_are_rejected():
    step = Perplexity(of_length([]), max_bits_per_byte=2.0)
    low, high, empty = Record("1", "ab"), Record("2", "abc"), Record("3", "")
    assert step(low) is None and low.metadata["perplexity"] == 4
    rejection = step(high)
    assert (rejection.rule, rejection.value) == ("perplexity/high", 3.0) and high.metadata["perplexity"] == 8
    assert step(empty).rule == "perplexity/high" and empty.metadata["perplexity"] is None
    assert Perplexity(of_length([]))(high) is None


def test_records_that_were_prepared_are_scored_once_and_together_unless_their_text_changed():
    calls = []
    step = Perplexity(of_length(calls), max_bits_per_byte=9)
    records = [Record("1", "a"), Record("2", "bb"), Record("1", "ccc", source="other")]
    step.prepare(records)
    records[1].text = "b"
    assert [step(record) for record in records] == [None] * 3
    assert [record.metadata["perplexity"] for record in records] == [2, 2, 8]
    assert calls == [["a", "bb", "ccc"], ["b"]]
