"""C4's filter (Raffel et al. 2020, section 2.2), as datatrove defines it and FineWeb uses it."""

import collections
import re

from lm.corpus.filters.base import Filter
from lm.corpus.filters.words import count_sentences
from lm.corpus.record import Record, Rejection

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_TERMINAL, _ELLIPSIS = (".", "?", "!", '"', "'"), "..."
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class C4(Filter):
    """Drops lines that are no text, and documents of which too little is left.

    The text of a document that stays is its lines that stay, without white space around them and without citation marks;
    `counts` says how many lines each rule dropped and how many marks went, in documents that stayed.
    The rule about lines without final punctuation is off, as in FineWeb; `terminal_punctuation=1` turns it on; 0 turns any rule off.
    """

    name = "c4"

    def __call__(self, record: Record) -> Rejection | None:
        """Return why the document is dropped, or None after changing its text."""
        limits, kept, sentences = self._limits, [], 0
        changes: collections.Counter[str] = collections.Counter()
        for line in record.text.splitlines():
            line, words = line.strip(), line.split()
            citations = 0
            if limits["citations"] and "[" in line:
                line, citations = _CITATION.subn("", line)
            lower = line.lower()
            dropped = self._drops_line(line, lower, words)
            if dropped in ("lorem_ipsum", "curly_bracket"):
                return Rejection(f"{self.name}/{dropped}", line[:200])
            if dropped:
                changes[f"{self.name}/{dropped} lines"] += 1
                continue
            changes[f"{self.name}/citations"] += citations
            if sentences < limits["few_sentences"]:
                sentences += count_sentences(line, self._language)
            kept.append(line)
        if sentences < limits["few_sentences"]:
            return Rejection(f"{self.name}/few_sentences", sentences)
        record.text = "\n".join(kept).strip()
        self.counts += changes
        return None

    def _drops_line(self, line: str, lower: str, words: list[str]) -> str | None:
        """Return the rule that a line breaks; the order decides what happens to lines that break several."""
        limits = self._limits
        longest = limits["long_word"]
        if longest and len(line) > longest and any(len(word) > longest for word in words):
            return "long_word"
        if limits["terminal_punctuation"] and (not line.endswith(_TERMINAL) or line.endswith(_ELLIPSIS)):
            return "terminal_punctuation"
        if len(words) < limits["few_words"]:
            return "few_words"
        if limits["lorem_ipsum"] and "lorem ipsum" in lower:
            return "lorem_ipsum"
        if limits["javascript"] and "javascript" in lower:
            return "javascript"
        if limits["curly_bracket"] and "{" in line:
            return "curly_bracket"
        if limits["policy"] and any(phrase in lower for phrase in _POLICY):
            return "policy"
        return None
