"""MinHash, its bands, candidate pairs, verification and clusters, each against a slow definition."""

import itertools
import random

import numpy as np
import pytest

from lm.corpus.dedup.clusters import best_of_each, components
from lm.corpus.dedup.minhash import MinHash, s_curve
from lm.corpus.dedup.pairs import ALL_PAIRS, NEIGHBOURS, bucket_pairs, first_of_equal
from lm.corpus.dedup.shingles import mix
from lm.corpus.dedup.verify import ShingleSets, jaccard


def sets_of(similarity: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of shingles whose Jaccard similarity is as near as sizes allow: scrambled numbers."""
    shared = round(2 * size * similarity / (1 + similarity))
    values = mix(np.arange(1, 2 * size - shared + 1, dtype=np.uint64) + np.uint64(seed * 10**6))
    return np.sort(values[:size]), np.sort(values[size - shared :])


@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.8, 0.95])
def test_signatures_agree_in_the_share_that_the_sets_do(similarity):
    hasher = MinHash(1, 128)
    pairs = [sets_of(similarity, 300, seed) for seed in range(150)]
    exact = jaccard(*pairs[0])
    estimates = [(hasher.signature(a) == hasher.signature(b)).mean() for a, b in pairs]
    deviation = (exact * (1 - exact) / 128) ** 0.5
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * deviation / 150**0.5)
    assert np.std(estimates) == pytest.approx(deviation, rel=0.25)


def test_candidates_follow_the_s_curve():
    hasher = MinHash(20, 6)
    for similarity in (0.3, 0.5, 0.6):
        pairs = [sets_of(similarity, 200, seed) for seed in range(400)]
        keys = [hasher.band_keys(np.stack([hasher.signature(a), hasher.signature(b)])) for a, b in pairs]
        met = np.mean([(both[0] == both[1]).any() for both in keys])
        ((_, expected),) = s_curve(20, 6, [jaccard(*pairs[0])])
        assert met == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 400) ** 0.5 + 0.01)


def test_s_curve_of_fineweb_and_ours():
    assert s_curve(14, 8, [0.8])[0][1] == pytest.approx(0.924, abs=5e-4)
    assert s_curve(20, 6, [0.8])[0][1] == pytest.approx(0.9977, abs=5e-5)


def test_signature_does_not_depend_on_order_or_chunks_and_changes_with_the_seed():
    shingles = mix(np.arange(1, 1001, dtype=np.uint64))
    hasher = MinHash(4, 4)
    signature = hasher.signature(shingles)
    assert (hasher.signature(shingles[::-1]) == signature).all()
    assert (np.minimum(hasher.signature(shingles[:300]), hasher.signature(shingles[300:])) == signature).all()
    assert not (MinHash(4, 4, seed=2).signature(shingles) == signature).any()


def test_bands_of_equal_rows_have_different_keys():
    keys = MinHash(3, 2).band_keys(np.tile(np.array([[5, 7]], np.uint64), (1, 3)))
    assert len(set(keys.ravel().tolist())) == 3


def slow_pairs(keys, ids, texts):
    first = {}
    for identity, text in zip(ids, texts, strict=True):
        first.setdefault(text, identity)
    buckets = {}
    for key, identity, text in zip(keys, ids, texts, strict=True):
        if first[text] == identity:
            buckets.setdefault(key, set()).add(identity)
    return sorted({pair for some in buckets.values() for pair in itertools.combinations(sorted(some), 2)})


def test_candidates_are_all_pairs_of_small_buckets_one_document_per_text():
    random.seed(3)
    documents = [(number, random.randrange(60)) for number in range(100)]  # id, text
    rows = [
        (random.Random(f"{text} {band}").randrange(30), number, text) for number, text in documents for band in (0, 1)
    ]
    keys, ids, texts = np.array(rows, np.uint64).T
    pairs = bucket_pairs(keys, ids, texts)
    assert list(zip(*map(np.ndarray.tolist, pairs), strict=True)) == slow_pairs(*np.array(rows).T.tolist())


@pytest.mark.parametrize("size", [ALL_PAIRS, ALL_PAIRS + 1, 20_000])
def test_a_huge_bucket_gives_few_pairs_that_still_connect_it(size):
    ids = np.arange(size, dtype=np.uint64) * 3
    a, b = bucket_pairs(np.zeros(size, np.uint64), ids, ids)
    assert len(a) == size * (size - 1) // 2 if size <= ALL_PAIRS else len(a) < 2 * NEIGHBOURS * size
    assert (a < b).all() and len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(a)
    assert set(b[a == 0].tolist()) == set(ids[1:].tolist())  # each is compared with the first


def test_first_of_equal_values():
    values, ids = np.array([7, 5, 7, 7, 5, 1], np.uint64), np.array([2, 3, 5, 7, 11, 13], np.uint64)
    first, other = first_of_equal(values, ids)
    assert sorted(zip(first.tolist(), other.tolist(), strict=True)) == [(2, 5), (2, 7), (3, 11)]


def test_similarities_are_exact_and_zero_where_sizes_exclude_the_threshold():
    random.seed(1)
    sets = [set(random.sample(range(40), random.randrange(1, 30))) for _ in range(20)]
    sizes = np.array([len(some) for some in sets])
    shingles = np.concatenate([np.array(sorted(some), np.uint64) for some in sets])
    ids = np.arange(20, dtype=np.uint64) * 7
    pairs = np.array(list(itertools.combinations(range(20), 2)))
    found = ShingleSets(ids, np.append(0, np.cumsum(sizes)), shingles).similarities(
        ids[pairs[:, 0]], ids[pairs[:, 1]], 0.5
    )
    for (i, j), similarity in zip(pairs, found, strict=True):
        expected = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        assert similarity == expected if expected >= 0.5 else similarity < 0.5


@pytest.mark.parametrize("edges", [0, 30, 100, 300])
def test_components_are_those_of_a_search(edges):
    random.seed(edges)
    pairs = [(random.randrange(100), random.randrange(100)) for _ in range(edges)]
    expected = list(range(100))
    for _ in range(100):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    assert components(a, b, 100).tolist() == expected


def test_a_long_chain_in_any_order_is_one_component():
    order = np.random.default_rng(0).permutation(50_000)
    assert (components(order[:-1], order[1:], 50_000) == 0).all()


def test_the_best_is_of_higher_quality_then_longer_then_earlier():
    clusters = np.array([0, 0, 2, 2, 4, 4, 4])
    quality = np.array([0.1, 0.2, 0.5, 0.5, -1, -1, -1])
    length = np.array([9, 1, 3, 4, 5, 6, 6])
    assert best_of_each(clusters, quality, length).tolist() == [1, 1, 3, 3, 5, 5, 5]
