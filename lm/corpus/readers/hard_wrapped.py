"""Lines that were broken to fit a page's width, joined into paragraphs; lines that were meant, kept.

A break was forced if the next line's first word would not have fitted on the line. Prose is a block most of whose
breaks were forced; in verse, tables of contents, title pages and letterheads few were.
"""

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

_SLACK = 9  # characters by which wrapping may fall short of the width
_RIGHT = " " * 10  # indent of a date or a signature
_FORCED = 0.75  # of a block's breaks, in prose
_BREAK = re.compile(r"[ \t]*(?:[*•·—–_-][ \t]*){3,}$")  # a line of asterisks between scenes
_LIST = re.compile(r"(?:\d{1,3}[.)]|[ivxlc]{1,6}\.|chapter\b)\s", re.IGNORECASE)


def unwrap(text: str) -> str:
    """Return a text with a line per paragraph of prose, and a blank line between paragraphs."""
    blocks = [
        block for lines in _blocks(text) for part in _split_at_signature(lines) for block in _split_at_indents(part)
    ]
    widths = _width(blocks, len), _width(blocks, _bytes)
    return "\n\n".join(_unwrap_block(block, widths) for block in blocks)


def _bytes(line: str) -> int:
    return len(line.encode("utf-8", "surrogatepass"))


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        line = line.expandtabs().rstrip()
        if line:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return blocks if blocks[-1] else blocks[:-1]


def _split_at_signature(lines: list[str]) -> list[list[str]]:
    """Cut a block where lines far to the right begin or end: dates and signatures of letters."""
    right = [line.startswith(_RIGHT) for line in lines]
    cuts = [0, *(index for index in range(1, len(lines)) if right[index] != right[index - 1]), len(lines)]
    return [lines[start:end] for start, end in pairwise(cuts)]


def _split_at_indents(lines: list[str]) -> list[list[str]]:
    """Cut a block of paragraphs that are told apart by their first lines' indents alone."""
    indented = [index for index, line in enumerate(lines) if line.startswith(" ")]
    rare = len(lines) >= 3 * len(indented) and all(after - before > 1 for before, after in pairwise(indented))
    if not indented or indented[0] != 0 or not rare:
        return [lines]
    return [lines[start:end] for start, end in pairwise([*indented, len(lines)])]


def _width(blocks: list[list[str]], measure: Callable[[str], int]) -> int:
    """Return the width at which the text is wrapped: all but the longest twentieth of its lines are no longer."""
    lengths = Counter(measure(line) for block in blocks if len(block) > 2 for line in block[:-1])
    total, seen = sum(lengths.values()), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= 0.95 * total:
            return length
    return 0


def _unwrap_block(lines: list[str], widths: tuple[int, int]) -> str:
    if len(lines) == 1:
        return "* * *" if _BREAK.match(lines[0]) else lines[0].strip()
    if _is_prose(lines, widths):
        return _joined(lines)
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[indent:] for line in lines)


def _is_prose(lines: list[str], widths: tuple[int, int]) -> bool:
    if any(line.startswith("  ") for line in lines[1:]) or sum(map(bool, map(_LIST.match, lines))) > 1:
        return False
    breaks = list(pairwise(lines))
    forced = sum(_forced(line, following, widths) for line, following in breaks)
    capitals = sum(following.lstrip("\"'“‘([")[:1].isupper() for _, following in breaks)
    if len(breaks) > 2 and capitals == len(breaks) and forced < len(breaks):
        return False
    return forced >= _FORCED * len(breaks)


def _forced(line: str, following: str, widths: tuple[int, int]) -> bool:
    """True if the next word had no room, by characters or by bytes (some tools count those); or nearly so, mid-sentence."""
    word = following.split(maxsplit=1)[0]
    return (
        widths[0] - len(line) - 1 - len(word) < _SLACK
        or widths[1] - _bytes(line) - 1 - _bytes(word) < _SLACK
        or (following[0].islower() and len(line) > 0.7 * widths[0])
    )


def _joined(lines: list[str]) -> str:
    parts = []
    for line in lines:
        line = " ".join(line.split())
        parts.append(line)
        if not line.endswith(("-", "—")):
            parts.append(" ")
    return "".join(parts).rstrip()
