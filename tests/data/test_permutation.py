"""The order of rows: a bijection, another one for each seed and epoch."""

import numpy as np
import pytest

from lm.data.permutation import permute, round_keys


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 16, 17, 100, 1000, 4097, 65537])
def test_it_is_a_bijection(size):
    order = permute(np.arange(size), size, round_keys(1, 2))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_elements_do_not_depend_on_which_others_are_asked_for():
    keys = round_keys("x")
    whole = permute(np.arange(1000), 1000, keys)
    np.testing.assert_array_equal(permute(np.array([[7, 3], [999, 0]]), 1000, keys), whole[[[7, 3], [999, 0]]])


def test_seeds_and_epochs_give_unrelated_orders():
    orders = [permute(np.arange(1000), 1000, round_keys(seed, epoch)) for seed in range(10) for epoch in range(10)]
    matches = [np.mean(a == b) for place, a in enumerate(orders) for b in orders[:place]]
    assert max(matches) < 0.01
    # Not grain's trap: epoch 1 of seed 0 is not epoch 0 of seed 1.
    assert (orders[1] != orders[10]).any()


def test_orders_are_not_correlated_with_the_files_order():
    """The rank correlation times sqrt(n) is close to a standard normal for a random order."""
    scores = []
    for seed in range(300):
        order = permute(np.arange(1000), 1000, round_keys(seed, 0))
        scores += [np.corrcoef(np.arange(1000), order)[0, 1], np.corrcoef(order[1:], order[:-1])[0, 1]]
    assert np.abs(scores).max() * np.sqrt(1000) < 4.5


def test_it_reaches_past_32_bits():
    size = 2**40 + 7
    order = permute(np.arange(size - 1000, size), size, round_keys(0))
    assert len(set(order.tolist())) == 1000
    assert order.min() >= 0
    assert order.max() < size
