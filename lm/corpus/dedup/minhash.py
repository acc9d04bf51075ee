"""MinHash signatures and their bands (Broder 1997; locality-sensitive hashing: Indyk and Motwani 1998).

A signature holds, for each of `bands * rows` random orders of all shingles, the first shingle of the document. Two
documents agree in one with probability s, their Jaccard similarity. They become a candidate pair if they agree in all
rows of at least one band: with probability 1 - (1 - s^rows)^bands, the S-curve.
"""

from collections.abc import Iterable

import numpy as np

from lm.corpus.dedup.shingles import odd_constants
from lm.data.permutation import mix

_CHUNK = 256  # shingles at a time: the products of 256 by 120 stay in the cache


def s_curve(bands: int, rows: int, similarities: Iterable[float]) -> list[tuple[float, float]]:
    """Return (Jaccard similarity, probability of becoming a candidate pair)."""
    return [(s, 1 - (1 - s**rows) ** bands) for s in similarities]


class MinHash:
    """Signatures of a number of bands and rows.

    An order of the shingles x is that of `a·x mod 2^64`, a odd (multiply-shift without the shift, Dietzfelbinger et al.
    1997): one to one, and since shingles are scrambled hashes already, as good as random (measured in
    tests/corpus/test_minhash.py). 0 alone would come first in all orders: one shingle of 2^64.
    """

    def __init__(self, bands: int, rows: int, seed: int = 1):
        self.bands, self.rows = bands, rows
        self._a = odd_constants(bands * rows, seed)
        self._places = odd_constants(rows, 0)
        self._products = np.empty((_CHUNK, bands * rows), np.uint64)

    def signature(self, shingles: np.ndarray) -> np.ndarray:
        """Return the least of each order's values over some shingles, at least one: uint64 [bands * rows]."""
        least = None
        for start in range(0, len(shingles), _CHUNK):
            chunk = shingles[start : start + _CHUNK]
            values = np.multiply(chunk[:, None], self._a, out=self._products[: len(chunk)])
            lowest = values.min(axis=0)
            least = lowest if least is None else np.minimum(least, lowest, out=least)
        return least

    def band_keys(self, signatures: np.ndarray) -> np.ndarray:
        """Return each band's rows as one hash, different bands' never the same by design.

        Args:
          signatures: uint64 [documents, bands * rows].

        Returns:
          uint64 [documents, bands].
        """
        rows = signatures.reshape(-1, self.bands, self.rows)
        band = np.arange(1, self.bands + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return mix(mix((rows * self._places).sum(axis=2, dtype=np.uint64)) + band)
