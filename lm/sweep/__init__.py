"""Sweeps, hyperparameter search, the learning-rate finder, and what their results say."""
