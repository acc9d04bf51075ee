"""Shingles: a text as the set of its word n-grams, each a 64-bit hash.

Words are compared as FineWeb compares them (`datatrove.utils.text.simplify_text`): lower case, each number "0",
punctuation to spaces, accents off. Two differences: words are what stands between spaces, where datatrove asks spaCy;
and characters of scripts written without spaces (Chinese, Japanese, Thai, …) are words of their own.
"""

import re
import unicodedata

import numpy as np

from lm.corpus.optional import require

_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_UNSPACED = ("CJK UNIFIED", "CJK COMPAT", "HIRAGANA", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
_CACHED_WORDS = 2**20
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


class _Words(dict):
    """Words' hashes, kept per process: most words of a text were seen before."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        self[word] = value = require("xxhash").xxh3_64_intdigest(word)
        return value


_characters, _words = _Characters(), _Words()


def split_words(text: str) -> list[bytes]:
    """Return a text's words, normalized, as UTF-8."""
    text = _NUMBER.sub("0", text.lower())
    if not text.isascii():
        text = _FOREIGN.sub(lambda match: _characters[match[0]], text)
    return text.encode("utf-8", "surrogatepass").translate(_PUNCTUATION).split()


def normalize(text: str) -> str:
    """Return a text's normalized words with one space between them."""
    return b" ".join(split_words(text)).decode("utf-8", "surrogatepass")


def hash_words(words: list[bytes]) -> np.ndarray:
    """Return words' XXH3 hashes: uint64 [words]."""
    return np.fromiter(map(_words.__getitem__, words), np.uint64, len(words))


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64s, one to one: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)  # products wrap around
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def odd_constants(count: int, seed: int) -> np.ndarray:
    """Return random odd uint64s, the same ones for the same seed, everywhere: a counter, scrambled."""
    counter = np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(seed) << np.uint64(32))
    return mix(counter * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def shingle(hashes: np.ndarray, words: int) -> np.ndarray:
    """Return the hashes of all n-grams of a text's words, in order, repeated ones too.

    An n-gram's hash is a sum of its words' hashes, each times a constant of its place, scrambled: a few passes over
    the text instead of hashing each n-gram's characters.

    Args:
      hashes: of the text's words: uint64 [N].
      words: n. A text of fewer has one shingle of all its words, one of none has none.

    Returns:
      uint64 [N - n + 1].
    """
    if not len(hashes):
        return np.zeros(0, np.uint64)
    words = min(words, len(hashes))
    places = odd_constants(words, seed=0)
    count = len(hashes) - words + 1
    total = hashes[:count] * places[0]
    for place in range(1, words):
        total += hashes[place : place + count] * places[place]
    return mix(total)


def shingle_set(text: str, words: int) -> np.ndarray:
    """Return a text's different shingles, sorted: uint64."""
    return np.unique(shingle(hash_words(split_words(text)), words))
