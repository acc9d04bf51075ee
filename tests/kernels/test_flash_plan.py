"""The planner's ranges against who sees whom, key by key."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.kernels.flash_attention.plan import Ranges, make_plan
from tests.kernels.attention_cases import Case, seen

BLOCK_Q, BLOCK_K = 4, 8


def plan_of(case: Case, ids: dict):
    ids = {name: jnp.asarray(x) for name, x in ids.items()}
    return make_plan(
        case.T, case.S, BLOCK_Q, BLOCK_K, causal=case.causal, window=case.window, q_offset=case.q_offset, **ids
    )


def tiles(mask_BTS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each block whether any query sees any key, and whether all see all, `[B, nq, nk]`."""
    B, T, S = mask_BTS.shape
    pads = ((0, 0), (0, -T % BLOCK_Q), (0, -S % BLOCK_K))
    shape = (B, -(-T // BLOCK_Q), BLOCK_Q, -(-S // BLOCK_K), BLOCK_K)
    some = np.pad(mask_BTS, pads).reshape(shape).any((2, 4))
    # Queries beyond the end harm nothing: they count as seeing all. Keys beyond it do not exist.
    every = np.pad(np.pad(mask_BTS, (pads[0], pads[1], (0, 0)), constant_values=True), (pads[0], (0, 0), pads[2]))
    return some, every.reshape(shape).all((2, 4)) & some


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    T=st.sampled_from([1, 8, 19, 30]), more=st.sampled_from([0, 13]), causal=st.booleans(), window=st.none() | st.integers(1, 30),
    documents=st.integers(0, 4), shuffled=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_visible_block_is_in_range_and_full_means_full(T, more, causal, window, documents, shuffled, seed):
    case = Case(T=T, S=T + more, causal=causal, window=window, documents=documents, seed=seed)
    _, ids = case.arrays()
    if ids and shuffled:  # ids in any order: ranges may hold more than they must, never less
        ids = {name: np.random.default_rng(seed).permuted(x, axis=1) for name, x in ids.items()}
    some, every = tiles(seen(case, ids))
    sides = (some, every), (some.swapaxes(1, 2), every.swapaxes(1, 2))
    for ranges, (some, every) in zip(plan_of(case, ids), sides, strict=True):
        assert ranges.is_static == (not ids)
        lo, full_lo, full_hi, hi = (np.broadcast_to(np.asarray(x), some.shape[:2])[..., None] for x in ranges)
        number = np.arange(some.shape[2])
        within, full = (lo <= number) & (number < hi), (full_lo <= number) & (number < full_hi)
        assert not (some & ~within).any(), "a visible block is left out"
        assert not (full & ~every).any(), "a block is called full and is not"
        assert (lo <= full_lo).all() and (full_lo <= full_hi).all() and (full_hi <= hi).all()
        if not shuffled:
            assert (some == within).all(), "documents one after another: nothing that could be skipped is in range"
        if not ids and window is None:
            assert (every == full).all(), "no full block is masked"


def test_shared_ranges_hold_every_row_and_are_full_for_every_row():
    ranges = Ranges(*(np.array(x)[:, None] for x in ([2, 0, 5], [3, 2, 5], [6, 4, 5], [7, 5, 5])))
    lo, full_lo, full_hi, hi = (int(x[0, 0]) for x in ranges.shared())
    assert (lo, hi) == (0, 7) and full_lo == full_hi == hi, "the last row has no full block"
    two = Ranges(*(x[:2] for x in ranges)).shared()
    assert [int(x[0, 0]) for x in two] == [0, 3, 4, 7]


@pytest.mark.parametrize("offset", [7, np.array([7, 3])])
def test_an_offset_that_is_known_later_gives_the_same_plan(offset):
    late = make_plan(5, 40, BLOCK_Q, BLOCK_K, causal=True, q_offset=jnp.asarray(offset, jnp.int32))
    for row, known in enumerate(np.atleast_1d(offset)):
        now = make_plan(5, 40, BLOCK_Q, BLOCK_K, causal=True, q_offset=int(known))
        for side_late, side_now in zip(late, now, strict=True):
            for x, y in zip(side_late, side_now, strict=True):
                np.testing.assert_array_equal(np.asarray(x)[row], y[0])
