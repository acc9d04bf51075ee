"""The lines of wikitext whose brackets and tags are gone: quotes, lists, headings, sections, spaces, paragraphs."""

import re

from lm.corpus.readers.wiki_names import APPARATUS

LITERAL, DROPPED, CITED, BREAK = "\x7f", "\x01", "\x03", "\x02"  # see lm.corpus.readers.wikitext

_HEADING = re.compile(r"(={1,6})[ \t]*([^\n]*?[^\n=])[ \t]*\1?=*[ \t\x01]*$")
_CODE_WIDTH = 120  # longer lines that start with a space are prose, and the space is a slip
_ITEM = re.compile(r"([*#:;]+)[ \t]*")
_TABLE_LINE = re.compile(r"\{\||\|[-}+]|[|!](?!\S*=?=)")
_SPACES = re.compile(r"[ \t\xa0]{2,}|\t|\xa0")

# A template that is dropped leaves its commas and brackets: "Ava ( ; born 1990)".
# Quantifiers are bounded, so that no line takes quadratic time.
_HOLES = re.compile(r"\x01(?: ?\x01)+")
_HOLE = re.compile(r" ?\((?=[^()\w\n]{0,40}\x01)[ ;,:/–\x01-]{0,40}\)")
_HOLE_FIRST = re.compile(r"\((?=[ ;,:]{0,9}\x01)[ ;,:\x01]{1,40}")
_HOLE_LAST = re.compile(r"[ ;,]{0,9}\x01[ ;,\x01]{0,40}\)")
_HOLE_START = re.compile(r"([*#:;]*) ?\x01[ ,;:.\x01]*")
_HOLE_BETWEEN = re.compile(r"([;,]) ?\x01 ?[;,]")
_HOLE_BEFORE_STOP = re.compile(r" \x01(?=[.,;:)])")
_CITATION = re.compile(r"[*#:;]+[ \x01]*\x03")  # an item that is one, and what follows it
_LONE = re.compile(r"\[\[|\]\]|\{\{|\}\}")


def lay_out(text: str) -> str:
    """Return the text in paragraphs, lists and headings, with a blank line between."""
    sections = _Sections()
    numbers: list[int] = []
    for line in text.split("\n"):
        if CITED in line:
            if _CITATION.match(line):
                continue
            line = line.replace(CITED, DROPPED)
        preformatted = line.startswith(" ") and len(line) <= _CODE_WIDTH and line.strip(" \x01\x02") != ""
        line = _tidy(line)
        bare = line.strip()
        if not bare:
            sections.blank()
        elif line[0] == "=" and (heading := _HEADING.match(line)):
            sections.heading(len(heading[1]), heading[2].strip())
        elif item := _ITEM.match(line):
            _number(numbers, item[1])
            if content := line[item.end() :].strip():
                sections.line(_marker(item[1], numbers) + content, item=item[1][-1] not in ":;" or len(item[1]) > 1)
            continue
        elif line[0] in "|!{" and _TABLE_LINE.match(line):
            pass  # of a table or a template that was never closed
        elif preformatted:
            sections.line(line, item=True)
        elif bare[0] == LITERAL == bare[-1] and bare.count(LITERAL) == 2:
            sections.line(bare, item=False)
        elif not set(bare) <= {"-", " "}:
            sections.line(bare, item=False, joined=True)
        numbers.clear()
    return sections.text().replace(BREAK, "\n")


def _tidy(line: str) -> str:
    if "''" in line:
        line = _without_quotes(line)
    if "  " in line or "\t" in line or "\xa0" in line:
        start = len(line) - len(line.lstrip(" ")) if line.startswith(" ") else 0
        line = line[:start] + _SPACES.sub(" ", line[start:])
    if DROPPED in line:
        line = _HOLES.sub(DROPPED, line)
        if start := _HOLE_START.match(line):
            line = start[1] + " " + line[start.end() :]
        line = _HOLE.sub("", line)
        line = _HOLE_FIRST.sub("(", line)
        line = _HOLE_LAST.sub(")", line)
        line = _HOLE_BETWEEN.sub(r"\1", line)
        line = _HOLE_BEFORE_STOP.sub("", line)
        line = line.replace(DROPPED, "")
        line = _SPACES.sub(" ", line).strip(" ")
    if "[[" in line or "]]" in line or "{{" in line or "}}" in line:
        line = _LONE.sub("", line)
    if BREAK in line:
        line = re.sub(r" *\x02[ \x02]*", BREAK, line).strip(" \x02")
    return line.rstrip()


def _without_quotes(line: str) -> str:
    """Take out bold and italic marks; as MediaWiki, read one `'''` as an apostrophe if neither kind is paired."""
    runs = [match.span() for match in re.finditer(r"'{2,}", line)]
    lengths = [min(end - start, 5) if end - start != 4 else 3 for start, end in runs]
    bold = sum(length in (3, 5) for length in lengths)
    italic = sum(length in (2, 5) for length in lengths)
    apostrophe = None
    if bold % 2 and italic % 2:
        candidates = [index for index, length in enumerate(lengths) if length == 3]
        before = [line[max(0, runs[index][0] - 2) : runs[index][0]] for index in candidates]
        one_letter = [
            i for i, b in zip(candidates, before, strict=True) if b[-1:] != " " and (len(b) < 2 or b[0] == " ")
        ]
        longer = [i for i, b in zip(candidates, before, strict=True) if b[-1:] != " " and i not in one_letter]
        apostrophe = (one_letter or longer or candidates or [None])[0]
    parts, position = [], 0
    for index, ((start, end), length) in enumerate(zip(runs, lengths, strict=True)):
        parts.append(line[position:start] + "'" * (end - start - length + (index == apostrophe)))
        position = end
    return "".join(parts) + line[position:]


def _number(numbers: list[int], prefix: str) -> None:
    """Count a list's items at each depth."""
    del numbers[len(prefix) :]
    while len(numbers) < len(prefix):
        numbers.append(0)
    if prefix[-1] == "#":
        numbers[-1] += 1


def _marker(prefix: str, numbers: list[int]) -> str:
    indent = "  " * (sum(character in "*#" for character in prefix) - (prefix[-1] in "*#"))
    return indent + {"*": "- ", "#": f"{numbers[-1]}. "}.get(prefix[-1], "")


class _Sections:
    """Lines gathered under their headings; apparatus and empty sections are left out."""

    def __init__(self):
        self._blocks: list[list[str]] = []  # pieces of each, printed with a blank line before it
        self._waiting: list[tuple[int, str]] = []  # headings that nothing followed yet
        self._left_out: int | None = None  # level of the section being left out
        self._open = False  # the last block may go on
        self._joins = False  # its last line may

    def blank(self) -> None:
        self._open = self._joins = False

    def heading(self, level: int, text: str) -> None:
        self.blank()
        if self._left_out is not None and level > self._left_out:
            return
        self._left_out = level if text.strip(" :.").lower() in APPARATUS else None
        self._waiting = [entry for entry in self._waiting if entry[0] < level]
        if self._left_out is None:
            self._waiting.append((level, text))

    def line(self, text: str, item: bool, joined: bool = False) -> None:
        """Add a line. `item`: it stands directly under the one before; `joined`: it continues a paragraph."""
        if self._left_out is not None:
            return
        self._blocks.extend([heading] for _, heading in self._waiting)
        if self._waiting:
            self._open = self._joins = False
        self._waiting.clear()
        if joined and self._joins and self._open:
            self._blocks[-1] += " ", text
        elif item and self._open and not self._joins:
            self._blocks[-1] += "\n", text
        else:
            self._blocks.append([text])
        self._open = True
        self._joins = joined

    def text(self) -> str:
        return "\n\n".join("".join(block) for block in self._blocks)
