"""Each published rule drops the document made to break it; what passes, passes unchanged but for C4's lines."""

import json
import os

import pytest

from lm.corpus.filters import FILTERS, find_filters, thresholds_table
from lm.corpus.filters.c4 import C4
from lm.corpus.filters.gopher import GopherQuality
from lm.corpus.record import Record
from lm.errors import ConfigError

SENTENCES = [
    "The old mill stands by a slow river, and nobody in our village remembers who built it.",
    "Every spring the water rises to its lowest window, but the walls have never moved.",
    "My grandmother told me that a baker once lived there with seven cats.",
    "He sold bread on market days until his oven cracked one winter night.",
    "Since then only swallows have kept house under those dark beams.",
    "Would you like to see what they left behind?",
]
PROSE = " ".join(SENTENCES)


def ask(step, text: str):
    record = Record("1", text)
    return step(record), record.text


def unlike(count: int, tag: str = "w") -> list[str]:
    """Words of six characters that all differ."""
    return [f"{tag}{number:05d}" for number in range(count)]


def repeating(n: int, share: float, runs: int = 4) -> str:
    """Words all different but for runs of n that stand twice, so that this share of the characters repeats."""
    filler = unlike(int(6 * n * runs / (7 * share)) - 2 * n * runs, "f")
    blocks = [unlike(n, "abcd"[run]) for run in range(runs)]
    words = [word for turn in (0, 1) for block in blocks for word in (*block, filler.pop())]
    return " ".join(words + filler)


def around(phrase: str, period: int) -> str:
    """The same phrase again and again between words that all differ, once in so many characters."""
    return " ".join(f"{phrase} {'x' * (period - len(phrase) - 6)}{number:04d}" for number in range(20))


LONG_PARAGRAPHS = ["\n".join(" ".join(unlike(12, f"{a}{b}")) for b in "klmn") for a in "abcdef"]
BREAKING = {  # rule: a document that breaks it, and what else cannot but be broken
    "gopher_quality/short": (" ".join(SENTENCES[:3]), ()),
    "gopher_quality/long": ((PROSE + " ") * 1600, ()),
    "gopher_quality/short_words": ("to of a b " * 30, ()),
    "gopher_quality/long_words": (PROSE + " incomprehensibilities" * 80, ()),
    "gopher_quality/hashes": (PROSE + " tag#tag#tag" * 8, ()),
    "gopher_quality/ellipses": (PROSE + " so......so" * 8, ()),
    "gopher_quality/bullets": ("\n".join(f"- {sentence}" for sentence in SENTENCES), ()),
    "gopher_quality/ellipsis_lines": ("\n".join([*SENTENCES, "And…", "But...", "Or ...", "So… "]), ()),
    "gopher_quality/alphabetic": (PROSE + " 12" * 30, ()),
    "gopher_quality/stop_words": (" ".join(f"Nobody likes {word} cats" for word in ("warm", "cold") * 9), ()),
    "gopher_repetition/duplicate_paragraphs": ("\n\n".join(["Hi.", *LONG_PARAGRAPHS[:2], "Hi.", "Hi."]), ()),
    "gopher_repetition/duplicate_paragraph_characters": (
        "\n\n".join([*LONG_PARAGRAPHS[:3], LONG_PARAGRAPHS[0]]),
        ("duplicate_line_characters", *(f"duplicate_{n}_grams" for n in range(5, 11))),
    ),
    "gopher_repetition/duplicate_lines": (
        "\n".join(["Hi.", "Ho.", *unlike(3), " ".join(unlike(60, "v")), *["Hi."] * 3]),
        (),
    ),
    "gopher_repetition/duplicate_line_characters": (
        "\n".join(" ".join(unlike(3, tag)) for tag in "abcdefghijakblcmdn"),
        (),
    ),
    "gopher_repetition/top_2_gram": (around("buy now", 30), ()),
    "gopher_repetition/top_3_gram": (around("the red cat", 45), ()),
    "gopher_repetition/top_4_gram": (around("one red cat sat", 75), ()),
    **{
        f"gopher_repetition/duplicate_{n}_grams": (repeating(n, limit + 0.005), ())
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    },
    "c4/few_sentences": (" ".join(SENTENCES[:4]), ()),
    "c4/lorem_ipsum": (PROSE + "\nThen Lorem Ipsum came.", ()),
    "c4/curly_bracket": (PROSE + "\nif (x) { return y; }", ()),
    "fineweb_quality/line_punctuation": (
        "\n".join([*SENTENCES, *(" ".join(unlike(8, f"{n:02d}")) for n in range(45))]),
        (),
    ),
    "fineweb_quality/short_lines": ("\n".join(f"{word} and seven more cats." for word in unlike(9)), ()),
    "fineweb_quality/duplicate_line_characters": ("\n".join([*SENTENCES, SENTENCES[5]]), ()),
    "fineweb_quality/newlines": (
        "\n\n\n".join(f"{word} incomprehensibilities internationally." for word in unlike(9)),
        (),
    ),
}
NEVER = {"short": 0, "short_words": 0, "alphabetic": 0, "stop_words": 0, "few_sentences": 0, "line_punctuation": 0}
NEVER |= {"lorem_ipsum": 0, "curly_bracket": 0}  # thresholds that nothing breaks; of the others, infinity


@pytest.mark.parametrize("rule", BREAKING)
def test_a_document_that_breaks_one_rule_is_dropped_by_it_alone(rule):
    (name, broken), (text, implied) = rule.split("/"), BREAKING[rule]
    rejection, left = ask(FILTERS[name]("en"), text)
    assert rejection is not None and rejection.rule == rule
    assert left == text
    lifted = {each: NEVER.get(each, float("inf")) for each in (broken, *implied)}
    assert ask(FILTERS[name]("en", **lifted), text)[0] is None


def test_the_value_that_broke_a_rule_is_told():
    assert ask(GopherQuality(), "Three words only")[0].value == 3
    assert ask(GopherQuality(), PROSE + " 12" * 30)[0].value == pytest.approx(0.68, abs=0.02)
    assert ask(C4(), PROSE + "\nHere is lorem ipsum text")[0].value == "Here is lorem ipsum text"


def test_every_rule_that_drops_documents_is_made_to_do_so():
    lines_and_sizes = {
        f"c4/{rule}" for rule in ("terminal_punctuation", "few_words", "long_word", "javascript", "policy")
    }
    lines_and_sizes |= {"c4/citations", "fineweb_quality/short_line_characters"}
    table = {f"{row['filter']}/{row['rule']}" for row in thresholds_table()}
    assert table == set(BREAKING) | lines_and_sizes
    assert {name.split("/")[0] for name in table} == set(FILTERS)
    assert all(row["source"] and "{" not in row["drops"].replace("with { in", "") for row in thresholds_table())


def test_running_text_passes_every_filter_unchanged():
    text = "\n".join(SENTENCES)
    record = Record("1", text)
    assert [step(record) for step in find_filters(list(FILTERS))] == [None] * len(FILTERS)
    assert record.text == text


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\x00", "\u200b"])
def test_a_document_without_words_is_dropped(text):
    for name in ("gopher_quality", "c4", "fineweb_quality"):
        assert ask(FILTERS[name]("en"), text)[0] is not None
    assert ask(FILTERS["gopher_repetition"]("en"), "")[0].rule == "gopher_repetition/empty"


def test_c4_drops_lines_and_citation_marks_and_counts_them():
    step = C4()
    junk = {
        "few_words": "Read more",
        "long_word": f"See also {'x' * 1001} here",
        "javascript": "Please enable JavaScript in your browser.",
        "policy": "By using this page you accept our Privacy Policy.",
    }
    text = "\n".join([*junk.values(), f"  {PROSE}[12][edit] ", "No full stop here"])
    rejection, left = ask(step, text)
    assert rejection is None
    assert left == f"{PROSE}\nNo full stop here"
    assert step.counts == {**{f"c4/{rule} lines": 1 for rule in junk}, "c4/citations": 2}


def test_c4_counts_nothing_of_documents_that_it_drops():
    step = C4()
    assert ask(step, "Read more\nToo short a page.")[0].rule == "c4/few_sentences"
    assert not step.counts


def test_c4_can_ask_for_final_punctuation_as_its_paper_does():
    step = C4(terminal_punctuation=1)
    assert (
        ask(step, f"{PROSE}\nNo full stop here\nAnd so on...\n'Quoted words here'")[1]
        == f"{PROSE}\n'Quoted words here'"
    )
    assert step.counts["c4/terminal_punctuation lines"] == 2


def test_a_lorem_ipsum_line_that_another_rule_drops_is_no_reason():
    assert ask(C4(few_words=4), f"{PROSE}\nlorem ipsum text")[0] is None


def test_stop_words_are_asked_for_in_english_only():
    text = BREAKING["gopher_quality/stop_words"][0]
    assert ask(GopherQuality("de"), text)[0] is None


@pytest.mark.parametrize(
    "name, hint", [("gopher_qualty", 'Did you mean "gopher_quality"?'), ("nothing", "fineweb_quality")]
)
def test_an_unknown_filter_is_refused(name, hint):
    with pytest.raises(ConfigError, match="There is no filter") as error:
        find_filters(["c4", name])
    assert hint in str(error.value)


def test_an_unknown_threshold_is_refused():
    with pytest.raises(ConfigError, match='Did you mean "short_words"'):
        GopherQuality(short_word=2)


def lenient(language: str) -> GopherQuality:
    return GopherQuality(language, short=2)


def test_a_filter_of_ones_own_is_found_by_its_module():
    (step,) = find_filters([f"{__name__}:lenient"])
    assert ask(step, "Have a look at the cats with me")[0] is None
    with pytest.raises(ConfigError, match="no_such_module"):
        find_filters(["no_such_module:filter"])


@pytest.mark.real_data
def test_the_published_pass_counts_on_real_web_text(real_data):
    with open(os.path.join(real_data, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    passed = {
        name: sum(ask(step, text)[0] is None for text in texts) for name in FILTERS for step in find_filters([name])
    }
    # datatrove 0.10.1's, as FineWeb calls it; one by one, and then in a chain.
    assert passed == {"gopher_repetition": 933, "gopher_quality": 830, "c4": 828, "fineweb_quality": 999}
    chain = find_filters(list(FILTERS))
    records = [Record("", text) for text in texts]
    assert sum(all(step(record) is None for step in chain) for record in records) == 717
