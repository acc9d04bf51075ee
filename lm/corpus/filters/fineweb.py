"""FineWeb's own filter (Penedo et al. 2024, arXiv:2406.17557, the additional heuristic filters), as datatrove defines it."""

from lm.corpus.filters.base import Filter
from lm.corpus.filters.gopher import duplicates
from lm.corpus.filters.words import TERMINAL, analyse
from lm.corpus.record import Record, Rejection


class FinewebQuality(Filter):
    """Drops documents that are lists, or whose lines are cut, short or repeated."""

    name = "fineweb_quality"

    def __call__(self, record: Record) -> Rejection | None:
        """Return why the document is dropped, or None; the first rule broken counts."""
        text, limits = record.text, self._limits
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return Rejection(f"{self.name}/empty", 0)
        ending = sum(line[-1] in TERMINAL for line in lines) / len(lines)
        if ending < limits["line_punctuation"]:
            return self._reject("line_punctuation", ending)
        short = sum(len(line) <= limits["short_line_characters"] for line in lines) / len(lines)
        if short > limits["short_lines"]:
            return self._reject("short_lines", short)
        line_ends = text.count("\n")
        repeated = duplicates(lines)[1] / (len(text) - line_ends)
        if repeated > limits["duplicate_line_characters"]:
            return self._reject("duplicate_line_characters", repeated)
        # A word has a character at least, and a text without line ends breaks no rule about them.
        newlines = line_ends / len(analyse(text, self._language).words) if line_ends else 0.0
        if newlines > limits["newlines"]:
            return self._reject("newlines", newlines)
        return None
