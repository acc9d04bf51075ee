"""What a chain of steps did is counted once and alike, however the documents were cut into parts."""

import collections
import json
import random

import pytest

from lm.corpus.card import build_card, source_card
from lm.corpus.record import Record, Rejection
from lm.corpus.tally import (
    KEPT_SAMPLES,
    LENGTH_EDGES,
    QUALITY_EDGES,
    REJECTED_SAMPLES,
    SAMPLE_CHARACTERS,
    Tally,
    merge,
)


class Strip:
    """Removes `#`."""

    name = "strip"

    def __init__(self):
        self.counts = collections.Counter()

    def __call__(self, record):
        marks = record.text.count("#")
        if marks:
            self.counts["marks"] += marks
            record.text = record.text.replace("#", "")


class AtLeast:
    """Drops short documents."""

    name = "short"

    def __init__(self, least):
        self.counts = collections.Counter()
        self.least = least

    def __call__(self, record):
        return Rejection("short/characters", len(record.text)) if len(record.text) < self.least else None


def documents(count=200):
    scatter = random.Random(0)
    return [
        ("s", f"id-{number}", "é#" + "x" * scatter.randrange(100), {"language": "en", "quality": scatter.random()})
        for number in range(count)
    ]


def tally_of(rows, seed=0):
    tally, steps = Tally(seed), [Strip(), AtLeast(50)]
    for source, name, text, metadata in rows:
        tally.run(steps, Record(name, text, source, metadata=dict(metadata)))
    return tally.stats()


def test_each_step_counts_what_it_left():
    tally, steps = Tally(), [Strip(), AtLeast(3)]
    assert tally.run(steps, Record("a", "##éab")).text == "éab"
    assert tally.run(steps, Record("b", "a#")) is None
    stats = tally.stats()
    assert [(s["name"], s["documents"], s["bytes"]) for s in stats["steps"]] == [
        ("read", 2, 8),
        ("strip", 2, 5),
        ("short", 1, 4),
    ]
    assert stats["rejected"] == {"short/characters": 1} and stats["changes"] == {"strip/marks": 3}
    assert stats["samples"]["rejected"][0]["value"] == 1 and stats["samples"]["rejected"][0]["text"] == "a"
    assert [entry["id"] for entry in stats["samples"]["kept"]] == ["a"]


def test_stats_do_not_depend_on_the_order_of_documents_or_on_the_parts_that_they_came_in():
    rows = documents()
    whole = tally_of(rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert tally_of(shuffled) == whole
    for parts in (2, 7):
        cut = [tally_of(shuffled[start::parts]) for start in range(parts)]
        assert merge(*cut) == whole
        assert merge(merge(*cut[:1]), merge(*cut[1:])) == whole
    assert merge(tally_of([]), whole, tally_of([])) == whole


def test_samples_are_few_and_another_seed_draws_others():
    stats = tally_of(documents())
    assert len(stats["samples"]["kept"]) == KEPT_SAMPLES and len(stats["samples"]["rejected"]) == REJECTED_SAMPLES
    drawn = [{entry["id"] for entry in tally_of(documents(), seed)["samples"]["kept"]} for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_every_rule_has_samples_however_rare():
    class Picky(AtLeast):
        def __call__(self, record):
            return Rejection("short/rare" if record.id == "id-77" else "short/common", None)

    tally = Tally()
    steps = [Picky(0)]
    for source, name, text, _ in documents():
        tally.run(steps, Record(name, text, source))
    rules = collections.Counter(entry["rule"] for entry in tally.stats()["samples"]["rejected"])
    assert rules == {"short/common": REJECTED_SAMPLES, "short/rare": 1}


def test_what_a_step_counts_of_its_rejections_is_no_change():
    class Counting(AtLeast):
        def __call__(self, record):
            self.counts["characters"] += 1
            self.counts["short/lines"] += 1
            return super().__call__(record)

    tally, steps = Tally(), [Counting(9)]
    tally.run(steps, Record("a", "short"))
    stats = tally.stats()
    assert stats["rejected"] == {"short/characters": 1} and stats["changes"] == {"short/lines": 1}


def test_a_long_document_is_cut_in_the_samples_and_counted_whole():
    tally = Tally()
    tally.run([], Record("a", "x" * 100_000, url="u" * 9000))
    sample = tally.stats()["samples"]["kept"][0]
    assert len(sample["text"]) == SAMPLE_CHARACTERS and sample["bytes"] == 100_000 and len(sample["url"]) <= 300


def test_histograms_have_a_place_for_every_document():
    tally = Tally()
    texts = ["", "x" * 63, "x" * 64, "x" * LENGTH_EDGES[-1]]
    for number, (text, quality) in enumerate(zip(texts, [0.0, 0.05, 0.999, 1.0], strict=True)):
        tally.run([], Record(str(number), text, metadata={"quality": quality}))
    stats = tally.stats()
    assert stats["lengths"]["kept"][:2] == [2, 1] and stats["lengths"]["kept"][-1] == 1
    assert stats["quality"]["kept"][:2] == [1, 1] and stats["quality"]["kept"][-1] == 2
    assert len(stats["quality"]["kept"]) == len(QUALITY_EDGES) - 1


def test_text_that_is_not_unicode_is_counted():
    tally = Tally()
    tally.run([], Record("\ud800", "a\udfff"))
    assert tally.stats()["steps"][0]["bytes"] == 4


def test_parts_of_different_steps_are_not_added():
    one, other = Tally(), Tally()
    one.run([Strip()], Record("a", "a"))
    other.run([AtLeast(0)], Record("b", "b"))
    with pytest.raises(ValueError, match="different steps"):
        merge(one.stats(), other.stats())


def test_a_source_without_documents_has_stats():
    assert merge()["steps"][0]["documents"] == 0
    assert source_card(reader="text", domain="d", files=[], tallies=[], tokens=0)["stages"][0]["documents"] == 0
    assert merge(tally_of([]), tally_of([]))["steps"][0] == {"name": "read", "documents": 0, "bytes": 0, "excerpts": []}


def test_a_card_joins_the_stages_and_estimates_the_tokens_of_what_is_gone():
    refined = tally_of(documents())
    kept = Tally()
    unique = AtLeast(0)
    unique.name = "unique"
    for number in range(refined["steps"][-1]["documents"]):
        kept.run([unique], Record(str(number), "xy"))
    source = source_card(reader="text", domain="d", files=[], tallies=[refined, kept.stats()], tokens=77)
    card = build_card(
        name="c",
        command="lm data build",
        lm_version="1",
        created="2026-01-01",
        config={},
        content_hash="0",
        seconds={},
        tokenizer={},
        splits={},
        mixture={},
        sources={"s": source},
        count_tokens=lambda text: len(text.encode()) // 2,
    )
    stages = card["sources"]["s"]["stages"]
    assert [stage["name"] for stage in stages] == ["read", "strip", "short", "unique"]
    assert (stages[-1]["tokens"], stages[-1]["estimated"]) == (77, False)
    per_byte = 77 / stages[-1]["bytes"]  # what is known of the last stage corrects the estimates before it
    assert stages[0]["estimated"] and stages[0]["tokens"] == pytest.approx(stages[0]["bytes"] * per_byte, rel=0.05)
    assert json.loads(json.dumps(card)) == card
