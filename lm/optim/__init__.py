"""Optimizers, schedules and masks, all derived from the dimension letters of `lm/axes.py`."""

from lm.optim.build import build_optimizer
from lm.optim.schedule import hyperparameters

__all__ = ["build_optimizer", "hyperparameters"]
