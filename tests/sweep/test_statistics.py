"""Verdicts over seeds: what they are worth is known from elsewhere (scipy, simulation), and odd cases stay honest."""

import math

import numpy as np
import pytest
from scipy import stats

from lm.sweep import statistics
from lm.sweep.statistics import dunnett_limit, dunnett_p, judge


def draw(seed=0, *, variants=6, seeds=3, sd=0.004, shifts=()):
    """{"0" (the baseline): {seed: value}, "1": …} with a seed's effect in common."""
    rng = np.random.default_rng(seed)
    values = 1.573 + rng.normal(0, 0.01, seeds) + rng.normal(0, sd, (variants, seeds))
    for variant, shift in enumerate(shifts, 1):
        values[variant] += shift
    return {str(variant): dict(enumerate(row.tolist())) for variant, row in enumerate(values)}


def test_one_variant_is_the_paired_t_test():
    for seed in range(5):
        values = draw(seed, variants=2, seeds=4, shifts=[0.004])
        theirs = stats.ttest_rel(list(values["1"].values()), list(values["0"].values()))
        interval = theirs.confidence_interval(0.95)
        ours = judge(values, "0").differences[0]
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
        assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert ours.verdict == (
            "no difference seen" if theirs.pvalue >= 0.05 else "worse" if theirs.statistic > 0 else "better"
        )


@pytest.mark.parametrize(("family", "degrees", "correlation"), [(2, 4, 0.5), (5, 10, 0.5), (3, 20, 0.2), (4, 2, 0.5)])
def test_the_largest_t_has_dunnetts_distribution(family, degrees, correlation):
    rng, draws = np.random.default_rng(0), 400_000
    shared, own = rng.normal(size=(draws, 1)), rng.normal(size=(draws, family))
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    t = np.abs(z).max(1) / np.sqrt(rng.chisquare(degrees, draws) / degrees)
    for level in (0.3, 0.05, 0.01):
        limit = dunnett_limit(level, family, degrees, correlation)
        assert dunnett_p(limit, family, degrees, correlation) == pytest.approx(level, rel=1e-6)
        assert np.mean(t > limit) == pytest.approx(level, abs=4 * math.sqrt(level / draws))


def test_two_variants_agree_with_scipys_multivariate_t():
    t = 2.7
    box = stats.multivariate_t(shape=[[1, 0.5], [0.5, 1]], df=8)
    inside = box.cdf([t, t], lower_limit=[-t, -t], maxpts=200_000, random_state=0)
    assert dunnett_p(t, 2, 8) == pytest.approx(1 - inside, abs=1e-4)


def test_unpaired_groups_agree_with_scipys_dunnett():
    rng = np.random.default_rng(5)
    control, *groups = rng.normal(0, 1, (5, 4)) + np.array([[0.0], [1.0], [2.0], [-0.5], [3.0]])
    theirs = stats.dunnett(*groups, control=control, rng=np.random.default_rng(0))
    for t, p in zip(theirs.statistic, theirs.pvalue, strict=True):
        assert dunnett_p(abs(t), 4, 5 * 3) == pytest.approx(p, abs=1e-3)


def test_dunnetts_published_limits():
    # Dunnett 1964, "New tables for multiple comparisons with a control", two-sided, joint 95 %.
    for family, degrees, limit in [(2, 10, 2.57), (5, 10, 2.99), (5, 20, 2.73), (9, 30, 2.86)]:
        assert dunnett_limit(0.05, family, degrees) == pytest.approx(limit, abs=0.012)


def test_intervals_and_p_follow_from_the_two_way_residuals():
    values = draw(4, variants=4, seeds=5, shifts=[-0.012])
    table = np.array([list(own.values()) for own in values.values()])
    residuals = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    square = (residuals**2).sum() / (3 * 4)
    judgement = judge(values, "0")
    assert judgement.degrees_of_freedom == 12
    assert judgement.residual_sd == pytest.approx(math.sqrt(square))
    for variant, ours in enumerate(judgement.differences, 1):
        mean, error = (table[variant] - table[0]).mean(), math.sqrt(2 * square / 5)
        assert not ours.own_scatter
        assert ours.mean == pytest.approx(mean)
        assert ours.percent == pytest.approx(100 * mean / table[0].mean())
        assert ours.p == pytest.approx(dunnett_p(abs(mean) / error, 3, 12))
        assert ours.high - ours.mean == pytest.approx(dunnett_limit(0.05, 3, 12) * error)
        assert (ours.p < 0.05) == (not ours.low <= 0 <= ours.high) == (ours.verdict != "no difference seen")


def test_a_seeds_part_changes_no_verdict():
    values = draw(1, shifts=[-0.02, 0.01])
    shifted = {name: {seed: v + 0.3 * seed for seed, v in own.items()} for name, own in values.items()}
    for ours, theirs in zip(judge(values, "0").differences, judge(shifted, "0").differences, strict=True):
        assert ours.p == pytest.approx(theirs.p, rel=1e-6)
        assert ours.verdict == theirs.verdict


def test_lower_is_better_and_the_order_is_kept():
    judgement = judge(draw(shifts=[-0.05, 0.05, 0.0]), "0")
    assert [d.variant for d in judgement.differences] == ["1", "2", "3", "4", "5"]
    assert [d.verdict for d in judgement.differences[:2]] == ["better", "worse"]


def test_missing_runs_are_left_out_and_what_is_left_is_compared_by_its_own_seeds():
    values = draw(variants=4, seeds=4, shifts=[-0.03])
    del values["1"][3], values["2"][0]
    values["3"][1] = math.nan
    judgement = judge(values, "0")
    assert [d.seeds for d in judgement.differences] == [(0, 1, 2), (1, 2, 3), (0, 2, 3)]
    assert judgement.degrees_of_freedom == 13 - (4 + 4 - 1)
    first = judgement.differences[0]
    assert first.mean == pytest.approx(np.mean([values["1"][seed] - values["0"][seed] for seed in range(3)]))
    assert first.verdict == "better"


def test_the_level_is_kept_where_variants_share_few_seeds():
    assert statistics._smallest_correlation([(0, 1, 2), (0, 1, 2)]) == pytest.approx(0.5)
    assert statistics._smallest_correlation([(0, 1), (1, 2)]) == pytest.approx(0.25)
    assert statistics._smallest_correlation([(0, 1), (2, 3)]) == 0
    assert dunnett_limit(0.05, 3, 10, 0.25) > dunnett_limit(0.05, 3, 10, 0.5)


def test_one_seed_gives_no_verdict():
    judgement = judge(draw(seeds=1, shifts=[-1.0]), "0")
    assert all(d.verdict is None and math.isnan(d.p) for d in judgement.differences)
    assert judgement.differences[0].mean < -0.9
    assert judgement.num_compared == 0 and math.isinf(judgement.smallest)


def test_a_variant_with_one_seed_in_common_has_no_verdict_beside_others_that_have():
    values = draw(shifts=[-0.03, -0.03])
    values["2"] = {0: values["2"][0], 7: 1.0}
    judgement = judge(values, "0")
    assert judgement.of("1").verdict == "better"
    assert judgement.of("2").verdict is None
    assert judgement.num_compared == 4


@pytest.mark.parametrize(
    "values",
    [
        {"a": {0: 1.5, 1: 1.5, 2: 1.5}, "b": {0: 1.5, 1: 1.5, 2: 1.5}},
        {"a": {0: 1.1, 1: 1.2}, "b": {0: 1.1, 1: 1.2}, "c": {0: 1.1, 1: 1.2}},
        {"a": {0: 0.1 + 0.2, 1: 0.3}, "b": {0: 0.3, 1: 0.3}},
        {"a": {0: 0.1}, "b": {}},
        {"a": {}, "b": {0: 1.0, 1: 2.0}},
        {"a": {}, "b": {}},
        {"a": {0: 1.0}},
        {"a": {0: 0.0, 1: 0.0}, "b": {0: 0.0, 1: 0.0}},
    ],
)
def test_what_has_no_scatter_or_no_runs_sees_no_difference(values):
    judgement = judge(values, "a")
    assert all(d.verdict in (None, "no difference seen") for d in judgement.differences)
    assert all(d.p == 1 for d in judgement.differences if d.verdict)


def test_a_difference_without_any_scatter_is_one():
    judgement = judge({"a": {0: 1.1, 1: 1.2, 2: 1.3}, "b": {0: 1.0, 1: 1.1, 2: 1.2}}, "a")
    assert judgement.differences[0].verdict == "better" and judgement.differences[0].p == 0
    assert judgement.smallest == 0


def test_a_variant_that_almost_diverges_does_not_drown_the_others():
    values = draw(2, seeds=4, shifts=[-0.02])
    values["4"] = dict(enumerate([2.0, 3.5, 5.0, 2.5]))
    values["5"] = dict(enumerate([3.1, 2.0, 2.2, 4.0]))
    judgement = judge(values, "0")
    assert set(judgement.left_out) == {"4", "5"}  # each alone would hide behind the other
    assert judgement.residual_sd < 0.01
    assert judgement.of("1").verdict == "better"
    wild = judgement.of("4")
    assert wild.own_scatter
    own = stats.ttest_rel(list(values["4"].values()), list(values["0"].values()))
    assert wild.p == pytest.approx(min(1, 5 * own.pvalue))


def test_an_unsteady_baseline_makes_every_variant_stand_by_its_own_scatter():
    values = draw(2, seeds=4)
    values["0"] = dict(enumerate([1.5, 1.7, 1.4, 1.8]))
    judgement = judge(values, "0")
    assert "0" in judgement.unsteady
    assert all(d.own_scatter for d in judgement.differences)


def test_sweeps_without_a_difference_seldom_see_one():
    judged = [judge(draw(seed), "0") for seed in range(150)]
    found = sum(any(d.verdict != "no difference seen" for d in judgement.differences) for judgement in judged)
    assert found <= 16  # 7.5 expected; more than 16 once in 500 times


def test_the_smallest_effect_is_seen_with_the_power_that_it_is_named_for():
    limit, degrees = dunnett_limit(0.05, 5, 10), 10
    shift = statistics._noncentrality(limit, degrees)
    rng, draws = np.random.default_rng(0), 200_000
    t = (rng.normal(size=draws) + shift) / np.sqrt(rng.chisquare(degrees, draws) / degrees)
    assert np.mean(np.abs(t) > limit) == pytest.approx(statistics.POWER, abs=0.005)
    judgement = judge(draw(seeds=3), "0")
    error = math.sqrt(2 / 3) * judgement.residual_sd
    assert judgement.smallest == pytest.approx(shift * error)


def test_a_baseline_that_is_no_variant_is_refused():
    with pytest.raises(ValueError, match="none of the variants"):
        judge({"a": {0: 1.0}}, "b")
