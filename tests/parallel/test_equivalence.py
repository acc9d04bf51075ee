"""However a model is divided over devices, it computes what it computes on one."""

import pytest

from experiments.benchmarks.equivalence import CASES, compare


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_five_steps_are_those_of_one_device(name):
    difference = compare(name)
    assert difference.gradients < 1e-5
    assert difference.worst[1] < 1e-4, difference.worst
    assert difference.losses < 1e-4
