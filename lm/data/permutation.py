"""A keyed permutation of 0..n-1, computed element by element: shuffling without storing an order."""

import functools
import hashlib
import math

import numpy as np

_ROUNDS = 8  # 4 leave some keys visibly correlated at small n (seen in grain's index shuffle)


@functools.lru_cache(maxsize=64)
def round_keys(*parts: int | str) -> tuple[int, ...]:
    """Return the rounds' keys, one uint64 each, from whatever names the permutation (seed, epoch, …)."""
    digest = hashlib.sha512(repr(parts).encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))


def permute(index: np.ndarray, size: int, keys: tuple[int, ...]) -> np.ndarray:
    """Return where a permutation of `range(size)` sends each index: int64, the index's shape.

    A Feistel network over the pairs Z_a x Z_b (Black and Rogaway 2002, generalized Feistel) with
    a = ceil(sqrt(size)) and the least b that makes a·b at least `size`. A value that falls outside the
    range is permuted again until it is inside (cycle walking); since a·b - size < a, few ever do.

    Args:
      index: integers from 0 to size - 1.
      size: n.
      keys: from `round_keys`.
    """
    index = np.asarray(index)
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    values = _feistel(index.astype(np.uint64).ravel(), a, b, keys)
    outside = np.flatnonzero(values >= size)
    while len(outside):
        values[outside] = _feistel(values[outside], a, b, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64).reshape(index.shape)


def _feistel(values: np.ndarray, a: int, b: int, keys: tuple[int, ...]) -> np.ndarray:
    a, b = np.uint64(a), np.uint64(b)
    left, right = values // b, values % b  # in Z_a, Z_b
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = (left + mix(right ^ np.uint64(first)) % a) % a
        right = (right + mix(left ^ np.uint64(second)) % b) % b
    return left * b + right


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64s, one to one: the finalizer of SplitMix64 (Steele, Lea and Flood 2014); products wrap around."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
