"""Candidate pairs: documents that fell into the same bucket of some band."""

import numpy as np

ALL_PAIRS = 64  # documents of a bucket whose pairs are all candidates
NEIGHBOURS = 16  # in a larger bucket: candidates are its first documents, and each one's next


def bucket_pairs(keys: np.ndarray, ids: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different candidate pairs of some buckets.

    Documents of the same text stand for each other: only the first of them in a bucket is paired, and that is the same
    one in each of their buckets. In a bucket of up to `ALL_PAIRS` documents each is paired with each. In a larger one a
    document is paired with the `NEIGHBOURS` that follow it and with the bucket's first `NEIGHBOURS`: one of k gives
    at most 32 k pairs, never k²/2, and if all its documents are alike they still form one cluster, for each is compared
    with the first.

    Args:
      keys: of the buckets: uint64 [rows].
      ids: of the documents, ascending within a bucket: uint64 [rows].
      texts: hashes of the documents' texts: uint64 [rows].

    Returns:
      (a, b): uint64 [pairs] each, a < b, sorted by a, then b.
    """
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    shared = np.zeros(len(order), bool)
    shared[1:] = sorted_keys[1:] == sorted_keys[:-1]
    shared[:-1] |= shared[1:]
    order = order[shared]  # most documents are alone in most of their buckets
    keys, ids, texts = keys[order], ids[order], texts[order]
    del order, sorted_keys, shared
    keys, ids = _first_of_each_text(keys, ids, texts)
    place, size = _places(keys)
    a, b = [], []
    for step in range(1, ALL_PAIRS):
        left = np.flatnonzero((place + step < size) & ((size <= ALL_PAIRS) | (step <= NEIGHBOURS)))
        a.append(ids[left])
        b.append(ids[left + step])
    large = np.flatnonzero((size > ALL_PAIRS) & (place > NEIGHBOURS))
    for first in range(NEIGHBOURS):
        right = large[place[large] - first > NEIGHBOURS]  # nearer ones are neighbours
        a.append(ids[right - place[right] + first])
        b.append(ids[right])
    return unique_pairs(np.concatenate(a), np.concatenate(b))


def _first_of_each_text(keys: np.ndarray, ids: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, texts, keys))
    new = np.ones(len(order), bool)
    new[1:] = (keys[order][1:] != keys[order][:-1]) | (texts[order][1:] != texts[order][:-1])
    order = order[new]
    order = order[np.lexsort((ids[order], keys[order]))]
    return keys[order], ids[order]


def _places(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of sorted keys its place in its bucket, and the bucket's size."""
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(keys)))
    return np.arange(len(keys)) - np.repeat(starts, sizes), np.repeat(sizes, sizes)


def unique_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different pairs, sorted by a, then b."""
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return a[new], b[new]


def first_of_equal(values: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (first, other) for each entry whose value an earlier id has too: uint64 each, `ids` ascending."""
    order = np.argsort(values, kind="stable")
    place, _ = _places(values[order])
    other = np.flatnonzero(place)
    return ids[order[other - place[other]]], ids[order[other]]
