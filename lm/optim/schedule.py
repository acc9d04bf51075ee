"""Learning-rate schedules, computed on the host: the step takes their values as traced inputs."""

import math

from lm.config import OptimizerConfig


def schedule_factor(config: OptimizerConfig, step: int) -> float:
    """Return the learning rate at a step (counted from 0) as a fraction of its peak.

    Linear warmup, then: `constant`; `linear` or `cosine` (Loshchilov and Hutter 2017) down to
    `final_learning_rate`; `wsd` (Hu et al. 2024): constant, then linear over the last
    `decay_fraction` of all steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, config.num_steps - round(config.decay_fraction * config.num_steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, config.num_steps - start)))
    shape = {
        "constant": 1.0,
        "linear": 1 - progress,
        "wsd": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[config.schedule]
    if config.schedule == "constant":
        return 1.0
    return config.final_learning_rate + (1 - config.final_learning_rate) * shape


def hyperparameters(config: OptimizerConfig, step: int) -> dict[str, float]:
    """Return the scalars that the compiled step takes as inputs at a step (counted from 0).

    Changing any of them never recompiles; a sweep over them shares one program.
    """
    factor = schedule_factor(config, step)
    return {
        "learning_rate": config.learning_rate * factor,
        "adam_learning_rate": (config.adam_learning_rate or config.learning_rate) * factor,
        "weight_decay": config.weight_decay,
        "b1": config.b1,
        "b2": config.b2,
        "muon_momentum": config.muon_momentum,
        "muon_b2": config.muon_b2,
        "adafactor_decay": config.adafactor_decay,
        "adafactor_clip": config.adafactor_clip,
        "clip_norm": math.inf if config.clip_norm is None else config.clip_norm,
    }
