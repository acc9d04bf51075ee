"""The published filters' thresholds, every one with its source: what the filters read and the card shows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.errors import ConfigError, did_you_mean

_GOPHER = "Gopher (Rae et al. 2021, arXiv:2112.11446), appendix A.1.1"
_C4 = "C4 (Raffel et al. 2020, JMLR 21:140), section 2.2"
_C4_CODE = "tensorflow/datasets c4_utils.py"
_FINEWEB = "FineWeb (Penedo et al. 2024, arXiv:2406.17557), additional heuristic filters"
_LINES, _PARAGRAPHS = "lines that repeat an earlier one", "paragraphs that repeat an earlier one"
_QUALITY, _REPETITION = "datatrove gopher_quality_filter.py", "datatrove gopher_repetition_filter.py"
_LIKE_FINEWEB = "datatrove c4_filters.py as called by examples/fineweb.py"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One threshold.

    Attributes:
      filter: whose it is.
      name: `filter/name` is the rule of a Rejection; a threshold's name may also qualify other rules.
      threshold: as published.
      drops: what is dropped, `{}` standing for the threshold.
      source: the paper's section; who uses this value, and who another.
    """

    filter: str
    name: str
    threshold: float
    drops: str
    source: str


def _quality(name: str, threshold: float, drops: str, others: str = "Dolma, DCLM: the same") -> Rule:
    return Rule("gopher_quality", name, threshold, f"documents {drops}", f"{_GOPHER}; {_QUALITY}; {others}")


def _repetition(name: str, threshold: float, share: str, others: str = "") -> Rule:
    source = f"{_GOPHER}, table A1; {_REPETITION}{others}"
    return Rule("gopher_repetition", name, threshold, f"documents with more than {{}} of their {share}", source)


def _c4(name: str, threshold: float, drops: str, source: str = _C4, others: str = "") -> Rule:
    return Rule("c4", name, threshold, drops, f"{source}; {_LIKE_FINEWEB}{others}")


def _fineweb(name: str, threshold: float, drops: str) -> Rule:
    return Rule("fineweb_quality", name, threshold, drops, f"{_FINEWEB}; datatrove fineweb_quality_filter.py")


RULES = (
    _quality("short", 50, "of fewer than {} words that are not punctuation alone"),
    _quality("long", 100_000, "of more than {} such words"),
    _quality(
        "short_words",
        3,
        "whose such words have fewer than {} characters on average",
        "DCLM: the same; Dolma: the median",
    ),
    _quality(
        "long_words",
        10,
        "whose such words have more than {} characters on average",
        "DCLM: the same; Dolma: the median",
    ),
    _quality("hashes", 0.1, "with more than {} signs # per word"),
    _quality("ellipses", 0.1, "with more than {} ellipses per word"),
    _quality("bullets", 0.9, "with more than {} of their lines starting with a bullet or a hyphen"),
    _quality("ellipsis_lines", 0.3, "with more than {} of their lines ending with an ellipsis"),
    _quality("alphabetic", 0.8, "where less than {} of the words have a letter"),
    _quality(
        "stop_words",
        2,
        "with fewer than {} different words of: the, be, to, of, and, that, have, with (English only)",
        "Dolma, DCLM: the same word may count twice",
    ),
    _repetition("duplicate_paragraphs", 0.3, _PARAGRAPHS),
    _repetition("duplicate_paragraph_characters", 0.2, f"characters in {_PARAGRAPHS}"),
    _repetition("duplicate_lines", 0.3, _LINES, "; Dolma: the same"),
    _repetition("duplicate_line_characters", 0.2, f"characters in {_LINES}", "; Dolma: 0.3"),
    *(
        _repetition(f"top_{n}_gram", share, f"characters in the most frequent {n}-gram of words", "; Dolma: the same")
        for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))
    ),
    *(
        _repetition(
            f"duplicate_{n}_grams",
            share,
            f"characters in {n}-grams of words that repeat an earlier one, without overlap",
            "; Dolma, DCLM: the same, of all n-grams' characters",
        )
        for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    ),
    _c4("few_sentences", 5, "documents with fewer than {} sentences in the lines kept", others="; DCLM: 3"),
    _c4("lorem_ipsum", 1, 'documents with "lorem ipsum" in a line not dropped before'),
    _c4("curly_bracket", 1, "documents with { in a line not dropped before"),
    _c4(
        "terminal_punctuation", 0, "if 1: lines that end with none of . ? ! \" ' or with an ellipsis", others="; C4: 1"
    ),
    _c4("few_words", 3, "lines of fewer than {} words (by white space)", others="; DCLM: 5"),
    _c4("long_word", 1000, "lines with a word of more than {} characters", _C4_CODE),
    _c4("javascript", 1, "lines with javascript"),
    _c4("policy", 1, "lines about terms of use, privacy policy, cookies", _C4_CODE),
    _c4("citations", 1, "the marks [1], [edit], [citation needed]", _C4_CODE),
    _fineweb("line_punctuation", 0.12, "documents with less than {} of their lines ending a sentence"),
    _fineweb("short_lines", 0.67, "documents with more than {} of their lines short"),
    _fineweb("short_line_characters", 30, "(a short line has at most {} characters)"),
    _fineweb("duplicate_line_characters", 0.01, f"documents with more than {{}} of their characters in {_LINES}"),
    _fineweb("newlines", 0.3, "documents with more than {} line ends per word"),
)


def thresholds(filter: str, changes: Mapping[str, float]) -> dict[str, float]:
    """Return a filter's thresholds by rule, the published ones but for the changes.

    Raises:
      ConfigError: a change of what is no threshold of the filter.
    """
    published = {rule.name: rule.threshold for rule in RULES if rule.filter == filter}
    for name in changes:
        if name not in published:
            raise ConfigError(
                f'The filter {filter} has no threshold "{name}".{did_you_mean(name, published)} '
                f"It has: {', '.join(published)}."
            )
    return published | dict(changes)


def thresholds_table() -> list[dict[str, Any]]:
    """Return every rule as `filter`, `rule`, `threshold`, `drops` (a sentence's end) and `source`, for a page."""
    return [
        {
            "filter": rule.filter,
            "rule": rule.name,
            "threshold": rule.threshold,
            "drops": rule.drops.replace("{}", f"{rule.threshold:,}"),
            "source": rule.source,
        }
        for rule in RULES
    ]
