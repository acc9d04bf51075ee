"""Lines that were broken to fit a page's width, joined into paragraphs; lines that were meant, kept.

A break was forced if the next line's first word would not have fitted on the line. Prose is a block most of whose
breaks were forced; in verse, tables of contents, title pages and letterheads few were.
"""

import re
from collections import Counter

_SLACK = 9  # characters by which wrapping may fall short of the width
_FORCED = 0.75  # of a block's breaks, in prose
_BREAK = re.compile(r"[ \t]*(?:[*•·—–_-][ \t]*){3,}$")  # a line of asterisks between scenes
_LIST = re.compile(r"(?:\d{1,3}[.)]|[ivxlc]{1,6}\.|chapter\b)\s", re.IGNORECASE)


def unwrap(text: str) -> str:
    """Return a text with a line per paragraph of prose, and a blank line between paragraphs."""
    blocks = [block for lines in _blocks(text) for block in _split_at_indents(lines)]
    width = _width(blocks)
    return "\n\n".join(_unwrap_block(block, width) for block in blocks)


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        line = line.expandtabs().rstrip()
        if line:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return blocks if blocks[-1] else blocks[:-1]


def _split_at_indents(lines: list[str]) -> list[list[str]]:
    """Cut a block of paragraphs that are told apart by their first lines' indents alone."""
    indented = [index for index, line in enumerate(lines) if line.startswith(" ")]
    if (
        not indented
        or indented[0] != 0
        or len(lines) < 3 * len(indented)
        or any(b - a < 2 for a, b in zip(indented, indented[1:], strict=False))
    ):
        return [lines]
    return [lines[start:end] for start, end in zip(indented, [*indented[1:], len(lines)], strict=True)]


def _width(blocks: list[list[str]]) -> int:
    """Return the width at which the text is wrapped: all but the longest twentieth of its lines are no longer."""
    lengths = Counter(len(line) for block in blocks if len(block) > 2 for line in block[:-1])
    total, seen = sum(lengths.values()), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= 0.95 * total:
            return length
    return 0


def _unwrap_block(lines: list[str], width: int) -> str:
    if len(lines) == 1:
        return "* * *" if _BREAK.match(lines[0]) else lines[0].strip()
    if _is_prose(lines, width):
        return _joined(lines)
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[indent:] for line in lines)


def _is_prose(lines: list[str], width: int) -> bool:
    if any(line.startswith("  ") for line in lines[1:]) or any(map(_LIST.match, lines[1:])):
        return False
    breaks = list(zip(lines, lines[1:], strict=False))
    forced = sum(len(line) + 1 + len(following.split(maxsplit=1)[0]) > width - _SLACK for line, following in breaks)
    capitals = sum(following.lstrip("\"'“‘([")[:1].isupper() for _, following in breaks)
    if len(breaks) > 2 and capitals == len(breaks) and forced < len(breaks):
        return False
    return forced >= _FORCED * len(breaks)


def _joined(lines: list[str]) -> str:
    parts = []
    for line in lines:
        line = " ".join(line.split())
        parts.append(line)
        if not line.endswith(("-", "—")):
            parts.append(" ")
    return "".join(parts).rstrip()
