"""Pack plans: every token once, no overlap, little padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.packing import best_fit, best_fit_plan, concat_plan, cut_documents, padding_fraction

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def positions(plan, row_length):
    """Return every stream position that a plan's rows hold, checking that runs do not overlap in a row."""
    runs = plan.runs(np.arange(plan.num_rows))
    used = np.zeros((plan.num_rows, row_length), int)
    for row, column, length in zip(runs.row, runs.column, runs.length, strict=True):
        assert column + length <= row_length
        used[row, column : column + length] += 1
    assert used.max() == 1
    assert (np.diff(used, axis=1) <= 0).all()  # padding comes last
    return np.concatenate([np.arange(a, a + n) for a, n in zip(runs.start, runs.length, strict=True)])


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_lists, row_length=st.integers(1, 20))
def test_every_token_is_in_exactly_one_row(lengths, row_length):
    total = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    concat, packed = concat_plan(total, row_length), best_fit_plan(starts, lengths, row_length)
    np.testing.assert_array_equal(positions(concat, row_length), np.arange(total))
    np.testing.assert_array_equal(np.sort(positions(packed, row_length)), np.arange(total))
    assert concat.num_tokens == packed.num_tokens == total


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_packing_in_bulk_gives_the_rows_of_best_fit_decreasing_one_by_one(lengths):
    capacity = 40
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= length
        else:
            rooms.append(capacity - length)
    order, offsets = best_fit(np.array(lengths), capacity)
    filled = [sum(lengths[i] for i in order[a:b]) for a, b in itertools.pairwise(offsets)]
    assert sorted(order) == list(range(len(lengths)))
    assert sorted(capacity - total for total in filled) == sorted(rooms)


def test_best_fit_splits_only_documents_longer_than_a_row():
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    starts = np.cumsum([0, *lengths[:-1]])
    pieces, sizes = cut_documents(starts, lengths, 128)
    short = set(starts[lengths <= 128])
    plan = best_fit_plan(starts, lengths, 128)
    assert sizes[np.isin(pieces, list(short))].tolist() == lengths[lengths <= 128].tolist()
    assert plan.num_rows < 1.02 * lengths.sum() / 128
    assert padding_fraction(plan, 128) == pytest.approx(1 - lengths.sum() / (plan.num_rows * 128))


def test_no_documents_give_no_rows():
    assert best_fit_plan([], [], 8).num_rows == concat_plan(0, 8).num_rows == 0
    assert padding_fraction(concat_plan(0, 8), 8) == 0
