"""The paired bootstrap: right where it must be silent, right where it must speak, and its two answers agree."""

import numpy as np
import pytest

from lm.evaluate.compare import compare


def items(n: int, shift: float = 0.0, seed: int = 0):
    """Documents of unequal sizes whose difference per byte is `shift` ± 0.03."""
    draw = np.random.default_rng(seed)
    sizes = 1000 * draw.lognormal(0, 1, n)
    a = sizes * draw.normal(1, 0.2, n)
    return a, a + sizes * draw.normal(shift, 0.03, n), sizes


def test_a_model_is_no_better_than_itself():
    a, _, sizes = items(50)
    result = compare(a, a, sizes)
    assert (result.difference, result.low, result.high, result.p, result.differing) == (0, 0, 0, 1, 0)
    assert result.better(False) is None
    assert result.verdict("bits per byte", "documents", higher_is_better=False).startswith("no difference: the same")


@pytest.mark.parametrize(("shift", "better"), [(-0.05, "B"), (0.05, "A")])
def test_a_clear_difference_is_found_measured_and_said(shift, better):
    result = compare(*items(60, shift))
    assert result.better(higher_is_better=False) == better and result.better(True) != better
    assert result.low < shift < result.high and result.p < 0.001
    said = result.verdict("bits per byte", "documents", higher_is_better=False)
    assert said.startswith(f"{better} is better") and "95 %" in said and "60 documents" in said


def test_the_figures_are_those_of_all_bytes_together():
    a, b, sizes = items(20, 0.1)
    result = compare(a, b, sizes)
    assert result.a == pytest.approx(a.sum() / sizes.sum())
    assert result.difference == pytest.approx((b - a).sum() / sizes.sum())


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_leaves_out_0_just_where_the_difference_is_significant(seed):
    result = compare(*items(30, 0.012, seed), resamples=999)
    assert (result.low > 0 or result.high < 0) == result.is_significant


def test_the_answer_is_the_same_each_time_and_turns_with_a_and_b():
    a, b, sizes = items(30, 0.01)
    first, again, turned = compare(a, b, sizes), compare(a, b, sizes), compare(b, a, sizes)
    assert first == again
    assert turned.difference == -first.difference and turned.p == pytest.approx(first.p, abs=0.01)


def test_a_few_items_prove_nothing():
    three = compare(np.zeros(3), np.ones(3))  # 2 of 8
    assert not three.is_significant and three.low < 0 < three.high
    assert not compare(np.zeros(5), np.ones(5) + 0.01 * np.arange(5)).is_significant  # 2 of 32 swaps are as extreme
    assert compare(np.zeros(9), np.ones(9)).is_significant  # 2 of 512


def test_answers_that_differ_in_few_questions_prove_nothing():
    right = np.ones(1000)
    wrong_in_3 = right.copy()
    wrong_in_3[:3] = 0
    assert not compare(right, wrong_in_3).is_significant
    wrong_in_12 = right.copy()
    wrong_in_12[:12] = 0
    assert compare(right, wrong_in_12).better(higher_is_better=True) == "A"


@pytest.mark.parametrize("kind", ["documents", "questions"])
def test_equal_models_are_told_apart_in_no_more_than_6_percent(kind):
    """As experiments/benchmarks/compare_power.py, in small: 0.06 and twice the standard error of 500 simulations."""
    draw, found = np.random.default_rng(0), 0
    for seed in range(500):
        if kind == "documents":
            sample = items(15, 0.0, seed)
        else:
            u = draw.random(60)
            sample = ((u < 0.15).astype(float), (u > 0.85).astype(float), None)
        found += compare(*sample, resamples=299, seed=seed).is_significant
    assert found / 500 <= 0.06 + 2 * 0.0106


@pytest.mark.parametrize(
    ("a", "b", "weights"), [([1], [1], None), ([1, 2], [1], None), ([1, 2], [1, 2], [0, 0]), ([1, 2], [2, 1], [1])]
)
def test_what_cannot_be_compared_is_refused(a, b, weights):
    with pytest.raises(ValueError, match="items"):
        compare(a, b, weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sums_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        compare([1, 2, 3], [1, bad, 3])
