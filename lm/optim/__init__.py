"""Optimizers, schedules and masks, all derived from the dimension letters of `lm/axes.py`."""

from lm.optim.build import Optimizer, build_optimizer
from lm.optim.schedule import hyperparameters
from lm.optim.state import state_letters

__all__ = ["Optimizer", "build_optimizer", "hyperparameters", "state_letters"]
