"""Evaluation: losses in strided windows; tasks (`score`, `tasks`, `runner`, `harness`, imported where they are used)."""

from lm.evaluate.loss import LossEvaluator

__all__ = ["LossEvaluator"]
