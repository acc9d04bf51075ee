"""Documents and paragraphs of the same text: hashes of their normalized words."""

import re

import numpy as np

from lm.corpus.dedup.shingles import find_words
from lm.corpus.optional import require

_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")


def text_hash(hashes: np.ndarray, text: str) -> int:
    """Return a document's hash by its words' hashes, or by the text as it stands if it has no words (XXH3, 64 bits).

    Among 100 million different documents two have the same one with probability 0.0003.
    """
    return require("xxhash").xxh3_64_intdigest(
        hashes.tobytes() if len(hashes) else text.encode("utf-8", "surrogatepass")
    )


def paragraphs(text: str) -> tuple[list[str], str]:
    """Return a text's paragraphs and what parts them: blank lines, or line ends if it has no blank lines."""
    blank = _BLANK.search(text) is not None
    return (_BLANK.split(text), "\n\n") if blank else (text.split("\n"), "\n")


def paragraph_hashes(text: str, characters: int) -> list[tuple[int, int]]:
    """Return (number, hash) of the paragraphs that have at least so many characters when normalized."""
    pieces = list(enumerate(paragraphs(text)[0]))
    pieces = [
        (number, piece) for number, piece in pieces if 4 * len(piece) >= characters
    ]  # none becomes that much longer
    words = find_words([piece for _, piece in pieces])
    return [
        (number, text_hash(words.of(index), piece))
        for index, (number, piece) in enumerate(pieces)
        if words.lengths[index] >= characters
    ]


def without_paragraphs(text: str, dropped: set[int]) -> str:
    """Return a text without the paragraphs of these numbers; empty if nothing but space is left."""
    pieces, separator = paragraphs(text)
    kept = separator.join(piece for number, piece in enumerate(pieces) if number not in dropped)
    return kept if kept.strip() else ""
