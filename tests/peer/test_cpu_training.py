"""The CPU training benchmark compares the same model on both sides."""

import math

import numpy as np
import pytest

from experiments.benchmarks import cpu_training

pytestmark = pytest.mark.peer


def test_both_sides_train_the_same_model():
    shape = {"L": 2, "D": 64, "N": 2, "T": 16, "B": 8, "V": 65}
    ours, torch = cpu_training.Ours(shape, []), cpu_training.Torch(shape)
    assert ours.parameters == torch.parameters
    for side in (ours, torch):
        side.run(1)
        assert side.loss == pytest.approx(math.log(65), abs=0.15)
        first = side.loss
        side.run(2)
        assert np.isfinite(side.loss) and side.loss != first
