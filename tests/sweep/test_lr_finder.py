"""The learning-rate finder: its rules on curves whose answer is known, and the ramp on a small model."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.report.lr_finder import draw
from lm.sweep.lr_finder import (
    RangeTest,
    Search,
    at_constant_rate,
    compressed,
    range_test,
    search_from,
    short_search,
)
from lm.train.step import build_step, step_scalars
from tests.train.common import built_step, fake_batch, mesh_of, run_steps, small_config

RATES = np.geomspace(1e-5, 1.0, 100)


def curve(losses, ended="high") -> RangeTest:
    return RangeTest(RATES[: len(losses)], np.asarray(losses, float), ended, len(RATES))


def fall_and_rise(fall: float, rise: float) -> np.ndarray:
    """A loss that falls from 8 to 4 around one rate and rises steeply from another on."""
    x = np.log10(RATES)
    return 8 - 4 / (1 + np.exp(-6 * (x - math.log10(fall)))) + 40 * np.maximum(0, x - math.log10(rise)) ** 2


def test_each_rule_finds_its_place_on_a_curve_without_noise():
    found = curve(fall_and_rise(1e-3, 1e-1)).suggestions()
    assert found["steepest"] == pytest.approx(1e-3, rel=0.3)
    assert found["minimum"] == pytest.approx(3e-3, rel=0.7)
    assert 1e-3 < found["valley"] < 10 * found["minimum"]


def test_noise_moves_the_steepest_fall_by_less_than_a_factor_of_two():
    quiet, noise = fall_and_rise(1e-3, 1e-1), np.random.default_rng(0).normal(0, 0.1, (20, len(RATES)))
    assert all(0.5e-3 < curve(quiet + own).suggestions()["steepest"] < 2e-3 for own in noise)


def test_smoothing_moves_no_part_of_the_curve_to_higher_rates():
    step = np.where(np.arange(100) < 50, 8.0, 4.0)
    smoothed = curve(step).smoothed
    assert abs(int(np.argmin(np.abs(smoothed - 6))) - 49.5) <= 2


def test_the_beginning_of_the_curve_suggests_nothing():
    losses = fall_and_rise(1e-3, 1e-1)
    losses[0] += 30  # the steepest fall of all, before anything is learned
    ramp = curve(losses)
    assert np.diff(ramp.smoothed).argmin() < 3
    assert ramp.suggestions()["steepest"] == pytest.approx(1e-3, rel=0.5)


def test_a_fall_after_the_loss_has_risen_again_suggests_nothing():
    losses = fall_and_rise(1e-3, 1e-1)
    losses[85:92] += 100  # up and, steeper than anywhere, down again, but not to the minimum
    ramp = curve(losses)
    assert np.diff(ramp.smoothed).argmin() > 85
    assert ramp.suggestions()["steepest"] == pytest.approx(1e-3, rel=0.5)


def test_a_loss_that_never_falls_suggests_nothing():
    assert curve(np.linspace(4, 8, 100)).suggestions() == {}


def test_a_ramp_that_ends_too_early_says_so():
    assert curve(np.linspace(8, 4, 100)).is_still_falling
    assert not curve(fall_and_rise(1e-3, 1e-1)).is_still_falling


def test_the_search_suggests_the_lowest_rate_within_a_hundredth_of_the_best():
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    assert Search(rates, (5.0, 4.03, 4.0, 4.2), 10).suggestion() == 2e-3
    assert Search(rates, (5.0, 4.05, 4.0, 4.2), 10).suggestion() == 4e-3
    assert Search(rates, (5.0, 4.05, math.inf, 4.2), 10).suggestion() == 2e-3
    assert Search(rates, (math.inf,) * 4, 10).suggestion() is None


def test_adams_rate_keeps_its_ratio_and_the_ramp_has_no_schedule():
    config = small_config(**{"optimizer.name": "muon", "optimizer.learning_rate": "1e-2"})
    own = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, adam_learning_rate=2e-2, warmup_steps=20)
    )
    for step in (0, 30, 399):
        scalars = step_scalars(at_constant_rate(own, 3e-3), step)
        assert scalars["learning_rate"] == pytest.approx(3e-3)
        assert scalars["adam_learning_rate"] == pytest.approx(6e-3)
    assert step_scalars(at_constant_rate(config, 3e-3), 5)["adam_learning_rate"] == pytest.approx(3e-3)


def test_a_short_run_has_the_whole_schedule():
    config = small_config(**{"optimizer.num_steps": "400", "optimizer.warmup_steps": "40"})
    short = compressed(config, 50, 3e-3)
    rates = [step_scalars(short, step)["learning_rate"] for step in range(50)]
    assert short.optimizer.warmup_steps == 5
    assert max(rates) == pytest.approx(3e-3) and rates[4] == pytest.approx(3e-3) and rates[-1] < 1e-4


def batch_of(built):
    return lambda step: fake_batch(built.mesh, 0)  # one batch over and over: the loss must fall


@pytest.mark.slow
def test_the_ramp_and_the_short_runs_share_one_program_with_training():
    config = small_config(**{"optimizer.name": "muon"})
    built = build_step(config, mesh_of(1, 1))
    run_steps(built, 1, config)
    range_test(built, batch_of(built), config, num_steps=4)
    short_search(built, batch_of(built), config, [1e-3, 1e-2], num_steps=2)
    assert built.step._cache_size() == 1


def bowl(sharpness: float = 1.0) -> SimpleNamespace:
    """A stand-in for a built step: gradient descent on a quadratic, which diverges above a rate of 2 / sharpness."""

    def step(x_D, batch, hparams):
        loss = 1 + 0.5 * sharpness * jnp.sum(x_D**2)
        return x_D - hparams["learning_rate"] * sharpness * x_D, {"loss": loss}

    return SimpleNamespace(mesh=mesh_of(1, 1), init=lambda: jnp.full(4, 2.0), step=jax.jit(step, donate_argnums=0))


def nothing(step):
    return None


def test_the_ramp_stops_where_the_loss_diverges():
    ramp = range_test(bowl(), nothing, small_config(), low=1e-3, high=1e3)
    assert ramp.ended == "diverged"
    assert 2 < ramp.learning_rates[-1] < 20
    assert not ramp.is_still_falling
    assert ramp.suggestions()["steepest"] < 2


def test_a_loss_that_is_no_number_ends_the_ramp_and_is_no_part_of_the_curve():
    ramp = range_test(bowl(), nothing, small_config(), low=1e-3, high=1e30, num_steps=20)
    assert np.isfinite(ramp.losses).all() and len(ramp.losses) == len(ramp.learning_rates) == len(ramp.smoothed) < 20


def test_the_ramp_goes_from_the_lowest_rate_to_the_highest_by_equal_factors():
    ramp = range_test(bowl(), nothing, small_config(), low=1e-4, high=1e-1, num_steps=31)
    assert (ramp.ended, len(ramp.losses)) == ("high", 31)
    assert ramp.learning_rates[[0, -1]] == pytest.approx([1e-4, 1e-1])
    assert np.diff(np.log10(ramp.learning_rates)) == pytest.approx(np.full(30, 0.1))


@pytest.mark.parametrize("first", [0.05, 1.2])
def test_the_search_goes_on_where_its_answer_is_at_its_edge(first):
    config = small_config(**{"optimizer.num_steps": "80", "optimizer.schedule": "constant"})
    found = search_from(bowl(), nothing, config, first, num_rates=2, num_steps=8)
    assert 2 < len(found.rates) <= 5
    assert np.diff(np.log2(found.rates)) == pytest.approx(1.0)
    assert found.rates[0] < found.suggestion() <= 1  # within 8 steps nothing is better than 1


def test_a_short_run_that_diverges_is_infinite_and_does_not_stop_the_others():
    losses = short_search(bowl(), nothing, small_config(), [1e30, 0.1], num_steps=20)
    assert losses[0] == math.inf and losses[1] < 9


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_runs_side_by_side_score_as_runs_in_turn(optimizer):
    config = small_config(**{"optimizer.name": optimizer})
    built, rates = built_step(config), [1e-3, 4e-3, 1.6e-2]
    batch = lambda step: fake_batch(built.mesh, step)  # noqa: E731
    in_turn = short_search(built, batch, config, rates, num_steps=6)
    together = short_search(built, batch, config, rates, num_steps=6, together=True)
    assert together == pytest.approx(in_turn, rel=1e-4)
    assert len(set(in_turn)) == len(rates)


@pytest.mark.slow
def test_every_run_begins_with_the_state_that_is_given_and_leaves_it_as_it_was():
    config = small_config()
    built = built_step(config)
    kept = jax.tree.map(np.array, built.init(seed=5))
    held = jax.device_put(kept)
    losses = [
        range_test(
            built, batch_of(built), config, num_steps=3, start=lambda: jax.tree.map(jnp.copy, held)
        ).losses.tolist()
        for _ in range(2)
    ]
    assert losses[0] == losses[1] != range_test(built, batch_of(built), config, num_steps=3).losses.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(held), strict=True))


@pytest.mark.parametrize("losses", [None, [5.0, 4.0, math.inf], [math.inf] * 3])
def test_the_plot_is_drawn_whatever_diverged(losses, tmp_path):
    ramp = curve(fall_and_rise(1e-3, 1e-1), "diverged")
    search = losses and Search((1e-3, 1e-2, 1e-1), tuple(losses), 20).record()
    result = {
        "rule": "steepest",
        "suggestion": ramp.suggestions()["steepest"],
        "suggestions": ramp.suggestions(),
        "range_test": ramp.record(),
        "search": search,
    }
    draw(result, str(tmp_path / "plot.png"), title="learning rate")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
