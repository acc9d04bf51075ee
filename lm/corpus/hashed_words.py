"""Words and word n-grams as 64-bit numbers, so that numpy can count and look them up."""

import functools
from collections.abc import Sequence

import numpy as np

from lm.corpus.optional import require
from lm.data.permutation import mix

_KEPT = 1 << 20  # words whose hash is remembered: about 150 MB
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd; 2^64 divided by the golden ratio


@functools.cache
def _word_hashes() -> dict[str, int]:
    """Hashes by word, filled as words come, once per process: a dictionary is five times as fast as hashing."""
    hash64 = require("xxhash").xxh3_64_intdigest

    class Hashes(dict):
        def __missing__(self, word: str) -> int:
            if len(self) >= _KEPT:
                self.clear()
            value = self[word] = hash64(word.encode("utf-8", "surrogatepass"))
            return value

    return Hashes()


def hash_words(words: Sequence[str]) -> np.ndarray:
    """Return each word's hash (XXH3), uint64 `[words]`.

    Raises:
      UsageError: xxhash is not installed.
    """
    return np.fromiter(map(_word_hashes().__getitem__, words), np.uint64, len(words))


def hash_ngrams(words: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Return the hashes of all n-grams of hashed words, for each n of `lengths` uint64 `[max(0, words - n + 1)]`.

    A polynomial in the words' hashes modulo 2^64, scrambled with n, so that n-grams of different lengths are unlike.
    """
    parts: dict[int, np.ndarray] = {}
    total = np.zeros(len(words), np.uint64)
    for n in range(1, max(lengths, default=0) + 1):
        count = max(0, len(words) - n + 1)
        total = total[:count] * np.uint64(_MULTIPLIER) + words[n - 1 : n - 1 + count]
        if n in lengths:
            parts[n] = total ^ np.uint64(n)
    if not parts:
        return []
    scrambled = mix(np.concatenate(list(parts.values())))  # at once: documents are short, calls take time
    ends = dict(zip(parts, np.cumsum([len(part) for part in parts.values()]).tolist(), strict=True))
    return [scrambled[ends[n] - len(parts[n]) : ends[n]] for n in lengths]
