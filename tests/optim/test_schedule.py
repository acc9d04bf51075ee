"""Schedules at the steps where they turn."""

import dataclasses

import pytest

from lm.config import OptimizerConfig
from lm.optim.schedule import hyperparameters, schedule_factor

BASE = OptimizerConfig(num_steps=100, warmup_steps=10, final_learning_rate=0.1, decay_fraction=0.2)


def factor(schedule, step):
    return schedule_factor(dataclasses.replace(BASE, schedule=schedule), step)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    assert [round(factor(schedule, step), 6) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]


def test_each_shape_after_the_warmup():
    assert factor("constant", 99) == 1.0
    assert factor("linear", 55) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor("cosine", 55) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor("cosine", 40) == pytest.approx(0.1 + 0.9 * 0.75)  # a third of the way: cos(pi / 3) = 1/2
    assert factor("wsd", 79) == factor("wsd", 80) == 1.0
    assert factor("wsd", 90) == pytest.approx(0.55)
    assert factor("linear", 100) == factor("cosine", 100) == factor("wsd", 100) == pytest.approx(0.1)


def test_no_clipping_is_an_infinite_limit_so_that_it_is_traced_too():
    assert hyperparameters(dataclasses.replace(BASE, clip_norm=None), 0)["clip_norm"] == float("inf")


def test_adamws_part_has_its_own_peak_under_muon():
    scalars = hyperparameters(dataclasses.replace(BASE, learning_rate=0.02, adam_learning_rate=0.004), 10)
    assert scalars["learning_rate"] == 0.02
    assert scalars["adam_learning_rate"] == 0.004
