"""Cleaning: broken encodings, invisible characters, line ends, spaces, and lines that are no text.

Order: mojibake is repaired first (it shows as control characters), then line ends, Unicode normalization, characters,
spaces and blank lines, and at last whole lines. ASCII text passes through the first steps untouched.

What is done depends on the kind of text: `code` keeps every space, blank line and unusual character that can stand in
a program; `web` also loses the lines that RefinedWeb calls undesirable (Penedo et al. 2023, arXiv:2306.01116, appendix
G.2), with the parameters of DCLM's reproduction (Li et al. 2024, arXiv:2406.11794: `dclm_baseline_refinedweb.yaml`).
"""

import collections
import re
import unicodedata

from lm.corpus.optional import require
from lm.corpus.record import Record, Rejection

KINDS = ("prose", "web", "code")

# UTF-8 that was read as Windows-1252 or Latin-1 has a first byte (Â to ô) before a continuation byte (0x80 to 0xBF,
# which Windows-1252 shows as these signs). Windows-1250 and 1251, Mac Roman and code page 437 show the same bytes as
# other signs, of which these are the common pairs. Control characters of 0x80 to 0x9F are Windows-1252 read as Latin-1.
# A match need not be right: ftfy decides.
_CONTINUATION = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MOJIBAKE = re.compile(
    f"[\x80-\x9f]|[\xc2-\xf4][{_CONTINUATION}]"
    f"|[ĂĹŘ][^\x00-\x7f]|в[‚Ђ]|[ГД][{_CONTINUATION}]|‚[Äà]|√[^\x00-\x7f\\s]|¬[†-•£©®±]|[├┬╬╧╨╪][^\x00-\x7f]|Γ[Çêåòí]"
)
# The first characters of these, which the regex engine finds five times as fast as the pairs.
_SUSPICIOUS = re.compile("[\x80-\x9f\xc2-\xf4ĂĹŘвГД‚√¬├┬╬╧╨╪Γ]")
_C1 = re.compile("[\x80-\x9f]")

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CODE_LINE_ENDS = re.compile("\r\n?")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff"
# Soft hyphen, zero-width space, word joiner, directional marks, interlinear annotation, replacement character,
# noncharacters, private use, tags. The zero-width (non-)joiners U+200C and U+200D stay: Persian, Indic scripts and
# emoji are spelled with them.
_INVISIBLE = (
    "\xad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufff9-\ufffd\ufffe\uffff\ufdd0-\ufdef"
    "\ue000-\uf8ff\U000e0000-\U000e007f\U000f0000-\U0010ffff"
)
_REMOVED = re.compile(f"[{_CONTROLS}{_INVISIBLE}]")
_REMOVED_IN_CODE = re.compile(f"[{_CONTROLS}]")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TRAILING = re.compile(r"(?<![ \t])[ \t]++(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
_SEPARATOR = re.compile(r"[-=_*~#+.,:;•·—–―─═…\s]+")  # brackets are left alone: they close blocks of code

_COUNTED = "likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers"
_COUNTER = re.compile(rf"\W*\d[\d.,]*[kmb]?\s+(?:{_COUNTED})\W*", re.IGNORECASE)
_EDITED = re.compile(r"\s?items in cart|^\s*sign-in|\s?read more\.\.\.\s*$", re.IGNORECASE)
_SHORT_LINE = 10  # words, of lines that are edited
_MAX_UPPERCASE = 0.5  # of a line's characters


class Clean:
    """The document step that repairs and tidies text.

    Rejections: `clean/empty`, nothing was left; `clean/lines` (web), more than `max_removed` of the document's words
    stood in lines that were dropped: it is no text with some navigation around it, but navigation.

    Args:
      kind: `prose`, `web` or `code`.
      max_removed: share of words; RefinedWeb's 5 %. None: any.
    """

    name = "clean"

    def __init__(self, kind: str = "prose", *, max_removed: float | None = 0.05):
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
        self._kind, self._max_removed = kind, max_removed
        self.counts: collections.Counter = collections.Counter()

    def __call__(self, record: Record) -> Rejection | None:
        text = self._characters(record.text)
        removed = 0.0
        if self._kind != "code":
            text = self._layout(text)
            if self._kind == "web":
                text, removed = self._web_lines(text)
            text = self._separators(text).strip()
        if text != record.text:
            self.counts["documents changed"] += 1
        record.text = text
        if not text or text.isspace():
            return Rejection("clean/empty", 0)
        if self._max_removed is not None and removed > self._max_removed:
            return Rejection("clean/lines", round(removed, 4))
        return None

    def _replace(self, pattern: re.Pattern, replacement: str, text: str, name: str) -> str:
        text, count = pattern.subn(replacement, text)
        if count:
            self.counts[name] += count
        return text

    def _characters(self, text: str) -> str:
        code = self._kind == "code"
        is_ascii = text.isascii()
        if not is_ascii:
            text = self._repair(text)
        if "\r" in text or not (code or (is_ascii and "\x0b" not in text and "\x0c" not in text)):
            text = self._replace(_CODE_LINE_ENDS if code else _LINE_ENDS, "\n", text, "line ends")
        if is_ascii:
            return self._replace(_ASCII_CONTROL, "", text, "characters removed")
        if not code and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            self.counts["documents normalized"] += 1
        text = self._replace(_REMOVED_IN_CODE if code else _REMOVED, "", text, "characters removed")
        return text if code else self._replace(_SPACES, " ", text, "spaces replaced")

    def _repair(self, text: str) -> str:
        """Give ftfy the lines that look broken, and no others: it is slow, and a line has one encoding."""
        found = _SUSPICIOUS.search(text) and _MOJIBAKE.search(text)
        if not found:
            return text
        ftfy = require("ftfy")
        parts, done = [], 0
        self.counts["documents given to ftfy"] += 1
        while found:
            start, stop = text.rfind("\n", done, found.start()) + 1, text.find("\n", found.end())
            start, stop = max(start, done), len(text) if stop < 0 else stop
            line = text[start:stop]
            fixed = ftfy.fix_encoding(line)
            if _C1.search(fixed):
                fixed = ftfy.fixes.fix_c1_controls(fixed)
            if fixed != line:
                self.counts["lines repaired"] += 1
            parts += [text[done:start], fixed]
            done = stop
            found = _MOJIBAKE.search(text, done)
        return "".join([*parts, text[done:]])

    def _layout(self, text: str) -> str:
        if " \n" in text or "\t\n" in text:
            text = _TRAILING.sub("", text)
        return self._replace(_BLANK_LINES, "\n\n", text, "runs of blank lines") if "\n\n\n" in text else text

    def _web_lines(self, text: str) -> tuple[str, float]:
        """Return the text without undesirable lines, and the share of its words that they had."""
        kept, words_before, words_removed = [], 0, 0
        for line in text.split("\n"):
            if not line or line.isspace():
                kept.append("")
                continue
            words = len(line.split())
            words_before += words
            rule = self._undesirable(line, words)
            if rule:
                self.counts[f"lines dropped: {rule}"] += 1
                words_removed += words
                continue
            if words <= _SHORT_LINE and (edited := _EDITED.sub("", line)) != line:
                self.counts["lines edited"] += 1
                words_removed += words - len(edited.split())
                if not edited.strip():
                    continue
                line = edited
            kept.append(line)
        if not words_removed:
            return text, 0.0
        return _BLANK_LINES.sub("\n\n", "\n".join(kept)), words_removed / words_before

    @staticmethod
    def _undesirable(line: str, words: int) -> str | None:
        if line.isdigit():
            return "number"
        if words < 2:
            return "one word"
        if sum(map(str.isupper, line)) > _MAX_UPPERCASE * len(line):
            return "uppercase"
        return "counter" if _COUNTER.fullmatch(line) else None

    def _separators(self, text: str) -> str:
        """Drop lines of only dashes, dots and the like that separate nothing: after another, or at either end."""
        lines = text.split("\n")
        marked = [not line[:1].isalnum() and _SEPARATOR.fullmatch(line) is not None for line in lines]
        if not any(marked):
            return text
        kept: list[str] = []
        open_separator, dropped = True, 0  # nothing has come since the last separator, or the beginning
        for line, is_separator in zip(lines, marked, strict=True):
            if not line or line.isspace():
                kept.append("")
            elif not is_separator:
                kept.append(line)
                open_separator = False
            elif open_separator:
                dropped += 1
            else:
                kept.append(line)
                open_separator = True
        while kept and (not kept[-1] or (open_separator and _SEPARATOR.fullmatch(kept[-1]))):
            dropped += bool(kept.pop())
        if not dropped:
            return text
        self.counts["separator lines dropped"] += dropped
        return _BLANK_LINES.sub("\n\n", "\n".join(kept))
