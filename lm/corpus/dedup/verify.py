"""Candidate pairs held against what MinHash only estimates: the Jaccard similarity of their shingles."""

import dataclasses

import numpy as np


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a ∩ b| / |a ∪ b| of two sets, each an array of different values, not both empty."""
    both = np.concatenate((a, b))
    both.sort()
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared)


@dataclasses.dataclass(frozen=True)
class ShingleSets:
    """Documents' shingles, one set after the other.

    Attributes:
      ids: ascending: uint64 [documents].
      offsets: document i's shingles are `shingles[offsets[i]:offsets[i + 1]]`: int64 [documents + 1].
      shingles: sorted within a document: uint64.
    """

    ids: np.ndarray
    offsets: np.ndarray
    shingles: np.ndarray

    def similarities(self, a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
        """Return the Jaccard similarity of pairs of ids: float64 [pairs].

        0 where the sets' sizes alone keep it below the threshold.
        """
        left, right = np.searchsorted(self.ids, a), np.searchsorted(self.ids, b)
        sizes = np.diff(self.offsets)
        least, most = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
        out = np.zeros(len(a))
        for pair in np.flatnonzero(least >= threshold * most):
            out[pair] = jaccard(self._of(left[pair]), self._of(right[pair]))
        return out

    def _of(self, index: int) -> np.ndarray:
        return self.shingles[self.offsets[index] : self.offsets[index + 1]]
