"""The data card says what a corpus is, lets nothing in its texts act on the page, and hides no problem."""

import collections
import copy
import html.parser
import re

import pytest

from lm.corpus.card import build_card, source_card
from lm.corpus.record import Record, Rejection
from lm.corpus.tally import Tally
from lm.report import data_card, data_card_texts, data_card_words

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e&amp;"


class Short:
    name = "gopher_quality"

    def __init__(self):
        self.counts = collections.Counter()

    def __call__(self, record):
        return Rejection("gopher_quality/short", len(record.text)) if len(record.text) < 9 else None


def source(texts, reader="jsonl", **more):
    tally, steps = Tally(), [Short()]
    for number, text in enumerate(texts):
        meta = {"title": f"title {HOSTILE}", "quality": 0.5, "language": "en", "license": HOSTILE}
        tally.run(steps, Record(f"id-{number}{HOSTILE}", text, "s", url=f"javascript:{HOSTILE}", metadata=meta))
    about = {
        "reader": reader,
        "domain": "web",
        "files": [{"path": "a.jsonl", "bytes": 10, "sha256": "ab"}],
        "tokens": 4,
    }
    return source_card(**(about | more), tallies=[tally.stats()])


def card(sources=None, **more):
    known = {
        "name": "four",
        "command": "lm data build --config x.py --out y",
        "lm_version": "1.2",
        "created": "2026-01-02T03:04:05",
        "config": {"sources": {"s": {"reader": HOSTILE, "filters": ["gopher_quality", "c4"]}}},
        "content_hash": "0123456789abcdef" * 4,
        "seconds": {"read": 3.0, "shard": 100.0},
        "tokenizer": {"name": "gpt2", "vocab_size": 50257, "sha256": "cd"},
        "splits": {"train": {"documents": 3, "tokens": 1234, "bytes": 5000}},
        "mixture": {"weighting": "fixed", "weights": {"web": 1.0}, "epochs": {"web": 1.5}, "tokens": 2000},
        "rules": {"gopher_quality/short": {"drops": "what is short", "origin": "a paper"}, "c4/a": {}, "other/b": {}},
        "duplicates": {
            "exact": 1,
            "near": 2,
            "between": [["s", "web", 12]],
            "paragraphs": 3,
            "clusters": {"sizes": {"2": 5}},
            "parameters": {"threshold": 0.8, "bands": 14, "rows": 8, "s_curve": [[0.0, 0.0], [0.8, 0.9], [1.0, 1.0]]},
            "pairs": [
                {
                    "jaccard": 0.9,
                    "a": {"source": "s", "id": "1", "text": f"one two three {HOSTILE}"},
                    "b": {"source": "s", "id": "2", "text": f"one 2 three {HOSTILE}"},
                }
            ],
        },
        "decontamination": {"sets": {"hellaswag": 7}, "words": 13},
        "quality_classifier": {
            "auc": 0.97,
            "documents": {"good": 40, "ordinary": 50},
            "top_ngrams": {"good": [[HOSTILE, 1.5]]},
            "thresholds": [{"threshold": 0.25, "recall": 0.955, "ordinary_kept": 0.2}],
        },
        "count_tokens": len,
    }
    texts = [HOSTILE, "a long enough text", "مرحبا بالعالم في صفحة", "short"]
    return build_card(**(known | more), sources=sources if sources is not None else {"s": source(texts)})


class Checker(html.parser.HTMLParser):
    """Follows the tags of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "path", "use"})

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def visible(page):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


@pytest.fixture(scope="module")
def page():
    return data_card.card_page(card())


def test_nothing_in_a_text_acts_on_the_page(page):
    found = Checker(page)
    assert not found.open
    assert not found.tags & {"script", "img", "iframe", "link", "object", "a"}
    assert not [name for name in found.attributes if name.startswith("on") or name in ("href", "src")]
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;alert(1)") > 5


def test_the_page_needs_no_network_and_is_the_same_for_the_same_card(page):
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    assert page == data_card.card_page(card())


@pytest.mark.parametrize(
    "fact",
    [
        "1.23k tokens in 3 documents",
        "lm data build --config x.py --out y",
        "0123456789abcdef" * 4,
        "gopher_quality/short what is short",
        "gopher_quality/short a paper",
        "Rules that dropped no document (1)",
        "95.5% 20.0%",
        "s web 12",
        "hellaswag",
        "AUC 0.9700",
        "Jaccard similarity 0.900",
        "1 (25.0%)",
        "Epochs are of a run of 2.00k tokens",
        "1.50",
    ],
)
def test_the_page_says(page, fact):
    assert fact in visible(page)


def test_a_rule_of_a_filter_that_no_source_asks_for_is_not_listed(page):
    assert "c4/a" in page and "other/b" not in page


def test_a_corpus_held_against_evaluation_sets_that_share_nothing_says_so():
    content = card(decontamination={"sets": {}, "words": 13, "max_overlap": 0.0})
    assert "0 documents with pieces of evaluation sets" in visible(data_card.card_page(content))


def test_what_a_text_is_written_in_decides_its_direction(page):
    assert len(re.findall(r'<div class="text" dir="auto"', page)) >= 4
    assert "unicode-bidi: plaintext" in page


def test_differences_of_near_duplicates_are_marked_by_word():
    left, right = data_card_texts.marked("the old <cat> sat", "the new <cat> sat down")
    assert left == "the <mark>old</mark> &lt;cat&gt; sat"
    assert right == "the <mark>new</mark> &lt;cat&gt; sat<mark> down</mark>"


def test_differences_in_a_script_without_spaces_are_marked_by_character():
    left, _ = data_card_texts.marked("測試頁面的中文", "測試頁面的漢文")
    assert left == "測試頁面的<mark>中</mark>文"


def test_a_long_stretch_that_both_have_is_cut_so_that_the_difference_is_in_sight():
    common = "word " * 200
    left, right = data_card_texts.marked(common + "end", common + "END")
    assert len(left) < 400 and "<mark>end</mark>" in left and "[…]" in right


@pytest.mark.parametrize(
    ("sources", "more", "said"),
    [
        ({"s": source([])}, {}, "nothing was read from 1 file"),
        ({"s": source(["short"] * 5)}, {}, "none of its 5 documents was kept"),
        ({"s": source(["short"] * 19 + ["long enough"])}, {}, "only 5.0% of its 20 documents"),
        (
            {"s": source(["long enough"], skipped=[{"where": "a:1", "reason": "not UTF-8"}], skipped_count=9)},
            {},
            "9 documents could not be read",
        ),
        ({"s": source(["long enough"], damaged=[{"path": "b.gz", "reason": "truncated"}])}, {}, "damaged"),
        ({}, {"splits": {"train": {"documents": 0, "tokens": 0, "bytes": 0}}}, "nothing to train on"),
    ],
)
def test_problems_stand_at_the_top_of_the_page_and_of_the_text(sources, more, said):
    content = card(sources, **more)
    page = data_card.card_page(content)
    assert said in page[: page.index('<ul class="statements">')]
    assert said in data_card_words.card_text(content)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"duplicates": None}, "Duplicates were not looked for"),
        ({"decontamination": None}, "not held against evaluation sets"),
        ({"mixture": {"weights": {"web": 1.0}, "epochs": {"web": 7.0}}}, "web 7.0 times"),
        ({"quality_classifier": {"auc": 0.6}}, "hardly tells good"),
    ],
)
def test_what_was_not_done_or_is_doubtful_is_said(more, said):
    content = card(**more)
    assert said in visible(data_card.card_page(content)) and said in data_card_words.card_text(content)


def test_a_corpus_of_nothing_has_a_page():
    empty = {"train": {"documents": 0, "tokens": 0, "bytes": 0}}
    content = card({}, splits=empty, mixture={}, seconds={}, rules={}, duplicates=None, quality_classifier=None)
    assert not Checker(data_card.card_page(content)).open
    assert "empty" in data_card_words.card_text(content)


def test_many_sources_do_not_widen_the_tables():
    one = source(["long enough text", "short"])
    content = card({f"source-{number}": copy.deepcopy(one) for number in range(6)})
    page = data_card.card_page(content)
    assert "6 (50.0%)" in page
    assert page.count("<figure") >= 12


def test_the_text_for_a_terminal_holds_no_control_characters():
    text = data_card_words.card_text(card({"s\x1b[31m": source(["long enough text"])}))
    assert "\x1b" not in text and "1.23k tokens" in text


def test_tokens_that_are_estimated_say_so(page):
    assert "≈" in visible(page)


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2.5e6, "2.50 MB"), (3e9, "3.00 GB"), (4e12, "4.00 TB")],
)
def test_sizes(count, said):
    assert data_card_words.size(count) == said
