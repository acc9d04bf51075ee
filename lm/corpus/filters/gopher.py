"""Gopher's filters of quality and repetition (Rae et al. 2021, arXiv:2112.11446, A.1.1), as datatrove defines them."""

import collections
import itertools
import re
from collections.abc import Iterable

from lm.corpus.filters.base import Filter
from lm.corpus.filters.words import Analysis, analyse, is_symbol
from lm.corpus.record import Record, Rejection

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS, _ELLIPSES = ("•", "-"), ("...", "…")
_TOP_N, _DUPLICATE_N = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_PARAGRAPH_END, _LINE_END = re.compile(r"\n{2,}"), re.compile(r"\n+")


class GopherQuality(Filter):
    """Drops documents that do not look like running text. Stop words are asked for in English only."""

    name = "gopher_quality"

    def __call__(self, record: Record) -> Rejection | None:
        """Return why the document is dropped, or None; the first rule broken counts."""
        text, limits, analysis = record.text, self._limits, analyse(record.text, self._language)
        real = [(word, count) for word, count in analysis.counts.items() if word.isalpha() or not is_symbol(word)]
        num_words, num_real = len(analysis.words), sum(count for _, count in real)
        if num_real < limits["short"]:
            return self._reject("short", num_real)
        if num_real > limits["long"]:
            return self._reject("long", num_real)
        num_words, num_real = max(num_words, 1), max(num_real, 1)
        length = sum(len(word) * count for word, count in real) / num_real
        if length < limits["short_words"]:
            return self._reject("short_words", length)
        if length > limits["long_words"]:
            return self._reject("long_words", length)
        hashes = text.count("#") / num_words
        if hashes > limits["hashes"]:
            return self._reject("hashes", hashes)
        ellipses = sum(map(text.count, _ELLIPSES)) / num_words
        if ellipses > limits["ellipses"]:
            return self._reject("ellipses", ellipses)
        lines = text.splitlines() or [""]
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines)
        if bullets > limits["bullets"]:
            return self._reject("bullets", bullets)
        ellipsis_lines = sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines)
        if ellipsis_lines > limits["ellipsis_lines"]:
            return self._reject("ellipsis_lines", ellipsis_lines)
        letters = sum(count for word, count in real if word.isalpha() or any(map(str.isalpha, word))) / num_words
        if letters < limits["alphabetic"]:
            return self._reject("alphabetic", letters)
        stop_words = len(STOP_WORDS & analysis.counts.keys())
        if self._language == "en" and stop_words < limits["stop_words"]:
            return self._reject("stop_words", stop_words)
        return None


class GopherRepetition(Filter):
    """Drops documents that repeat themselves: paragraphs, lines, n-grams of words."""

    name = "gopher_repetition"

    def __call__(self, record: Record) -> Rejection | None:
        """Return why the document is dropped, or None; the first rule broken counts."""
        text = record.text
        if not text:
            return Rejection(f"{self.name}/empty", 0)
        pieces = (("paragraph", _PARAGRAPH_END.split(text.strip())), ("line", _LINE_END.split(text)))
        for kind, parts in pieces:
            repeated, characters = duplicates(parts)
            for rule, share in (
                (f"duplicate_{kind}s", repeated / len(parts)),
                (f"duplicate_{kind}_characters", characters / len(text)),
            ):
                if share > self._limits[rule]:
                    return Rejection(f"{self.name}/{rule}", round(share, 4))
        return self._repeats_words(analyse(text, self._language), len(text))

    def _repeats_words(self, analysis: Analysis, characters: int) -> Rejection | None:
        # Counting n-grams takes time, and most documents are far from the thresholds: an upper bound is asked first.
        words, counts = analysis.words, analysis.counts
        if not words:
            return None
        most, heaviest = max(counts.values()), max(len(word) * count for word, count in counts.items())
        for n in _TOP_N:
            limit = self._limits[f"top_{n}_gram"]
            if (n * heaviest + (n - 1) * most) / characters > limit:  # no n-gram is more frequent than its words
                length, count = _top_n_gram(words, n)
                if length * count / characters > limit:
                    return Rejection(f"{self.name}/top_{n}_gram", round(length * count / characters, 4))
        limits = [self._limits[f"duplicate_{n}_grams"] for n in _DUPLICATE_N]
        covered = _covered_characters(words, _DUPLICATE_N[0], max(map(len, counts)), min(limits) * characters)
        for n, limit in zip(_DUPLICATE_N, limits, strict=True):
            if covered / characters > limit:  # longer n-grams that repeat cover no more than the shortest
                share = _duplicate_characters(words, n) / characters
                if share > limit:
                    return Rejection(f"{self.name}/duplicate_{n}_grams", round(share, 4))
        return None


def duplicates(parts: Iterable[str]) -> tuple[int, int]:
    """Return how many parts repeat an earlier one, and their characters."""
    seen: set[str] = set()
    repeated = characters = 0
    for part in parts:
        if part in seen:
            repeated, characters = repeated + 1, characters + len(part)
        else:
            seen.add(part)
    return repeated, characters


def _n_grams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _top_n_gram(words: list[str], n: int) -> tuple[int, int]:
    """Return the characters, spaces between words included, of the most frequent n-gram, and how often it stands."""
    if len(words) < n:
        return 0, 0
    ((n_gram, count),) = collections.Counter(_n_grams(words, n)).most_common(1)  # the earliest of the most frequent
    return sum(map(len, n_gram)) + n - 1, count


def _covered_characters(words: list[str], n: int, longest: int, enough: float) -> int:
    """Return the characters of the words that are in some n-gram which stands earlier too.

    Args:
      longest: characters of the longest word.
      enough: where there cannot be more characters than that, the result is 0.
    """
    n_grams = list(_n_grams(words, n))
    if (len(n_grams) - len(set(n_grams))) * n * longest <= enough:
        return 0
    seen: set[tuple[str, ...]] = set()
    characters = covered = 0  # words before `covered` are counted
    for start, n_gram in enumerate(n_grams):
        if n_gram in seen:
            characters += sum(map(len, words[max(start, covered) : start + n]))
            covered = start + n
        else:
            seen.add(n_gram)
    return characters


def _duplicate_characters(words: list[str], n: int) -> int:
    """Return the characters of n-grams that repeat an earlier one, those found left to right that do not overlap.

    An n-gram is its words written together, so the same text cut into other words is the same n-gram.
    """
    joined, ends = "".join(words), [0, *itertools.accumulate(map(len, words))]
    seen: set[str] = set()
    characters = start = 0
    while start + n <= len(words):
        n_gram = joined[ends[start] : ends[start + n]]
        if n_gram in seen:
            characters += len(n_gram)
            start += n
        else:
            seen.add(n_gram)
            start += 1
    return characters
