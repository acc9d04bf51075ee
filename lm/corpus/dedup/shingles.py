"""Shingles: a text as the set of its word n-grams, each a 64-bit hash.

Words are compared as FineWeb compares them (`datatrove.utils.text.simplify_text`): lower case, each number "0",
punctuation to spaces, accents off. Two differences: words are what stands between spaces, where datatrove asks spaCy;
and characters of scripts written without spaces (Chinese, Japanese, Thai, …) are words of their own.
"""

import dataclasses
import functools
import re
import unicodedata
from array import array
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from lm.corpus.optional import require
from lm.data.permutation import mix

_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_UNSPACED = ("CJK UNIFIED", "CJK COMPAT", "HIRAGANA", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
_CACHED_TOKENS = 2**18  # about 60 MB
_PUNCTUATION = bytes(code if code >= 128 or chr(code).isalnum() else ord(" ") for code in range(256))


class _Characters(dict):
    """What becomes of each character beyond ASCII."""

    def __missing__(self, character: str) -> str:
        bare = unicodedata.normalize("NFD", character)
        kept = "".join(map(self._one, bare))
        self[character] = f" {kept} " if unicodedata.name(character, "").startswith(_UNSPACED) else kept
        return self[character]

    @staticmethod
    def _one(character: str) -> str:
        category = unicodedata.category(character)
        if category in ("Mn", "Cf"):  # accents; zero-width joiners, soft hyphens
            return ""
        return " " if category[0] in "PSZ" or category == "Cc" else character


def split_words(text: str) -> list[bytes]:
    """Return a text's words, normalized, as UTF-8."""
    text = _NUMBER.sub("0", text.lower())
    if not text.isascii():
        text = _FOREIGN.sub(lambda match: _characters[match[0]], text)
    return text.encode("utf-8", "surrogatepass").translate(_PUNCTUATION).split()


def normalize(text: str) -> str:
    """Return a text's normalized words with one space between them."""
    return b" ".join(split_words(text)).decode("utf-8", "surrogatepass")


class _Tokens(dict):
    """What stands between spaces, by number, with the words that it becomes: most tokens of a text were seen before.

    Nothing that normalization does looks beyond a space, so it is done once per different token.

    Attributes:
      hashes: of all tokens' words, one token's after the other's.
      first, words, characters: of each token: where its words' hashes begin, how many there are, and how long they are
        with one space between them.
    """

    def __init__(self):
        self._xxh3 = require("xxhash").xxh3_64_intdigest
        self.hashes, self.first, self.words, self.characters = array("Q"), array("q"), array("q"), array("q")

    def __missing__(self, token: str) -> int:
        self.first.append(len(self.hashes))
        if token.isascii() and token.isalpha():  # half of them
            self.words.append(1)
            self.characters.append(len(token))
            self.hashes.append(self._xxh3(token.lower().encode()))
        else:
            words = split_words(token)
            self.words.append(len(words))
            self.characters.append(len(b" ".join(words).decode("utf-8", "surrogatepass")))
            self.hashes.extend(map(self._xxh3, words))
        self[token] = number = len(self)
        return number


_characters, _tokens = _Characters(), None


@dataclasses.dataclass(frozen=True)
class Words:
    """Some texts' words, one text's after the other's.

    Attributes:
      hashes: XXH3 of each word (`split_words`): uint64 [words].
      offsets: text i's are `hashes[offsets[i]:offsets[i + 1]]`: int64 [texts + 1].
      lengths: of each text when normalized, in characters: int64 [texts].
    """

    hashes: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def of(self, text: int) -> np.ndarray:
        """Return one text's hashes."""
        return self.hashes[self.offsets[text] : self.offsets[text + 1]]


def find_words(texts: Sequence[str]) -> Words:
    """Return the words of some texts, at most a few MB: together, because numpy's calls cost more than a short text."""
    global _tokens
    if _tokens is None or len(_tokens) > _CACHED_TOKENS:
        _tokens = _Tokens()
    pieces = [text.split() for text in texts]
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    numbers = np.fromiter(map(_tokens.__getitem__, chain.from_iterable(pieces)), np.int64, sizes.sum())
    first, counts, characters = (
        np.frombuffer(column, np.int64)[numbers] for column in (_tokens.first, _tokens.words, _tokens.characters)
    )
    ends = np.cumsum(counts)
    begin = np.repeat(first - ends + counts, counts)
    begin += np.arange(len(begin))
    bounds = np.append(0, np.cumsum(sizes))  # of texts, in tokens
    spaced = np.append(0, np.cumsum(characters + (characters > 0)))  # each token's words with a space after them
    lengths = np.maximum(np.diff(spaced[bounds]) - 1, 0)
    return Words(np.frombuffer(_tokens.hashes, np.uint64)[begin], np.append(0, ends)[bounds], lengths)


@functools.lru_cache
def odd_constants(count: int, seed: int) -> np.ndarray:
    """Return random odd uint64s, the same ones for the same seed, everywhere: a counter, scrambled."""
    counter = np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(seed) << np.uint64(32))
    return mix(counter * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def shingles(words: Words, size: int) -> list[np.ndarray]:
    """Return the hashes of each text's n-grams of words, in order, repeated ones too.

    An n-gram's hash is a sum of its words' hashes, each times a constant of its place, scrambled: a few passes over
    the text instead of hashing each n-gram's characters.

    Args:
      words: of some texts.
      size: n. A text of fewer words has one shingle of all its words, one of none has none.

    Returns:
      uint64 [N - n + 1] for a text of N words.
    """
    places = odd_constants(size, 0)
    count = max(len(words.hashes) - size + 1, 0)
    total = np.zeros(count, np.uint64)
    for place in range(size):
        total += words.hashes[place : place + count] * places[place]
    total = mix(total)  # those that cross from one text to the next are passed over
    out = []
    for start, end in pairwise(words.offsets.tolist()):
        if end - start >= size:
            out.append(total[start : end - size + 1])
        else:
            short = words.hashes[start:end] * places[: end - start]
            out.append(mix(short.sum(dtype=np.uint64, keepdims=True)) if end > start else short)
    return out


def shingle_set(text: str, size: int) -> np.ndarray:
    """Return a text's different shingles, sorted: uint64."""
    return np.unique(shingles(find_words([text]), size)[0])
