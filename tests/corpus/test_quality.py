"""The quality classifier: it learns words, not formats; the same texts give the same file; honest about what it can."""

import json
import os

import numpy as np
import pytest

from lm.corpus.config import QualityConfig
from lm.corpus.quality import Classifier, Quality, auc, evaluate, passages, quality_words, train_classifier
from lm.corpus.record import Record
from lm.errors import DamagedFileError, UsageError
from lm.storage import read_bytes

SMALL = QualityConfig(buckets=2**12, held_out=0.3)


def texts(words: str, count: int, seed: int, length: int = 120) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words.split(), length)) for _ in range(count)]


COMMON = "the of and to in a is that for it was on as with his they at be this from have or by one had "
LEARNED, BOUGHT = "theorem century river treaty therefore", "click shop cart cookies login"
GOOD = texts(COMMON + LEARNED, 60, 1)
ORDINARY = texts(COMMON + BOUGHT, 60, 2)


@pytest.fixture(scope="module")
def classifier():
    return train_classifier(GOOD, ORDINARY, SMALL, seed=3)


def test_what_differs_is_learned_measured_on_held_out_documents_and_named(classifier):
    about = classifier.about
    assert about["auc"] > 0.99
    held, trained = about["documents"], about["training"]
    assert 5 < held["good"] < 35 and held["good"] + trained["good"]["documents"] == 60
    assert held["ordinary"] + trained["ordinary"]["documents"] == 60
    heaviest = {name for name, _ in about["top_ngrams"]["good"][:5]}
    assert heaviest <= set(LEARNED.split())
    assert {name for name, _ in about["top_ngrams"]["ordinary"][:5]} <= set(BOUGHT.split())
    at_half = next(row for row in about["thresholds"] if row["threshold"] == 0.5)
    assert at_half["recall"] > 0.9 and at_half["precision"] > 0.9
    assert json.loads(json.dumps(about)) is not None  # plain data, for the card


def test_no_difference_gives_an_auc_about_one_half():
    about = train_classifier(texts(COMMON, 80, 4), texts(COMMON, 80, 5), SMALL).about
    assert abs(about["auc"] - 0.5) < 3 * about["auc_error"] < 0.5


def test_line_ends_case_punctuation_and_length_tell_nothing(classifier):
    text = GOOD[0]
    words = text.split()
    wrapped = "\n".join(" ".join(words[i : i + 7]) for i in range(0, len(words), 7))
    assert classifier.score(f"“{wrapped.upper()}”!!") == classifier.score(text)
    assert quality_words("It’s 1,234 _words_ — 5 p.m.") == ["it", "s", "0", "0", "words", "0", "p", "m"]
    short, long = texts(COMMON, 40, 6, length=200), texts(COMMON, 40, 7, length=5000)
    about = train_classifier(short, long, SMALL).about
    assert abs(about["auc"] - 0.5) < 0.35  # the same words in documents of different length


def test_long_documents_are_cut_into_passages_of_like_length():
    words = [str(i) for i in range(1_000_000)]
    cut = passages(words)
    assert len(cut) == 64 and {len(passage) for passage in cut} == {200}
    assert int(cut[-1][0]) > 980_000 and int(cut[1][0]) - int(cut[0][0]) > 15_000  # spread over all of it
    assert [len(passage) for passage in passages(words[:449])] == [200, 200]
    assert [len(passage) for passage in passages(words[:450])] == [200, 200, 50]
    assert [len(passage) for passage in passages(words[:3])] == [3]


def test_the_same_texts_and_seed_give_the_same_file_which_can_be_loaded(classifier, tmp_path):
    path = str(tmp_path / "quality.npz")
    classifier.save(path)
    assert train_classifier(iter(GOOD), iter(ORDINARY), SMALL, seed=3).encode() == read_bytes(path)
    loaded = Classifier.load(path)
    assert [loaded.score(t) for t in GOOD + ORDINARY] == [classifier.score(t) for t in GOOD + ORDINARY]
    assert loaded.about["auc"] == classifier.about["auc"]


def test_a_damaged_classifier_is_refused(classifier, tmp_path):
    path = tmp_path / "quality.npz"
    content = bytearray(classifier.encode())
    for damaged in (content[:-100], b"", b"{}", content[:2000] + b"xx" + content[2002:]):
        path.write_bytes(bytes(damaged))
        with pytest.raises(DamagedFileError, match="no classifier"):
            Classifier.load(str(path))
    with pytest.raises(UsageError, match="no file"):
        Classifier.load(str(tmp_path / "none"))


def test_scores_are_probabilities_for_any_text(classifier):
    for text in ("", "...", "x", "é" * 100_000, "\ud800 broken", "a " * 100_000, GOOD[0]):
        assert 0 <= classifier.score(text) <= 1
    assert classifier.score("") == 0


def test_too_few_documents_are_refused():
    with pytest.raises(UsageError, match="config.quality.ordinary: 1 documents with words"):
        train_classifier(GOOD, ["one", "...", ""], SMALL)
    two = train_classifier(GOOD[:2], ORDINARY[:2], SMALL).about
    assert two["documents"] == {"good": 1, "ordinary": 1}


def test_auc_is_the_share_of_pairs_in_the_right_order():
    random = np.random.default_rng(0)
    good, ordinary = random.integers(0, 9, 40) + 2, random.integers(0, 9, 30)
    pairs = [(g > o) + 0.5 * (g == o) for g in good for o in ordinary]
    assert auc(good, ordinary) == pytest.approx(np.mean(pairs))


def test_documents_below_the_least_quality_are_rejected(classifier):
    step = Quality(classifier, min_quality=0.5)
    good, ordinary = Record("1", GOOD[0]), Record("2", ORDINARY[0])
    assert step(good) is None and good.metadata["quality"] > 0.5
    rejection = step(ordinary)
    assert rejection.rule == "quality/low" and rejection.value == ordinary.metadata["quality"] < 0.5
    assert Quality(classifier)(ordinary) is None


def test_sampling_keeps_documents_with_their_quality_as_probability_and_by_seed_and_id_alone():
    fixed = Classifier(np.zeros(16), np.log(0.3 / 0.7))  # everything has quality 0.3
    records = [Record(f"page {i}", "some words", source="web") for i in range(1000)]

    def kept(seed, records=records):
        step = Quality(fixed, sample_by_quality=True, seed=seed)
        return {record.id for record in records if step(record) is None}

    assert 0.3 - 4 * 0.0145 < len(kept(0)) / 1000 < 0.3 + 4 * 0.0145
    assert kept(0) == kept(0, records[::-1])
    both = len(kept(0) & kept(1)) / 1000
    assert 0.09 - 4 * 0.0091 < both < 0.09 + 4 * 0.0091
    assert kept(0) != {
        r.id for r in records if Quality(fixed, sample_by_quality=True)(Record(r.id, r.text, "books")) is None
    }


@pytest.mark.slow
@pytest.mark.real_data
def test_a_book_held_out_whole_is_told_from_web_pages(real_data):
    def book(name):
        with open(os.path.join(real_data, "books", name), encoding="utf-8", errors="replace") as file:
            words = file.read().split()
        return [" ".join(words[i : i + 1000]) for i in range(0, len(words), 1000)]

    with open(os.path.join(real_data, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        pages = [json.loads(line)["text"] for line in file]
    good = book("pride_and_prejudice.txt") + book("sherlock.1661.txt")
    classifier = train_classifier(good, pages[:800])
    figures = evaluate(classifier, book("war_and_peace.2600-0.txt"), pages[800:])
    assert figures["auc"] > 0.95
