"""Evaluation: losses in strided windows."""

from lm.evaluate.loss import LossEvaluator

__all__ = ["LossEvaluator"]
