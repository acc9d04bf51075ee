"""Searches on an objective that trains nothing."""

import math

from lm.config import Config, to_dict
from lm.sweep.algebra import Choice, Uniform
from lm.sweep.search import SearchPlan, Trials, write_search

SPACE = {
    "optimizer.learning_rate": Uniform(1e-4, 1.0, log=True),
    "optimizer.b2": Uniform(0.9, 0.999),
    "optimizer.warmup_steps": Uniform(0, 20, integer=True),
    "model.activation": Choice(("gelu", "swiglu")),
    "data.path": Choice((("a",), ("b", "c"))),  # values that Optuna does not take
}
STEPS = 27


def plan_of(**options) -> SearchPlan:
    about = {"name": "rates", "description": "", "kind": "optuna", "trials": 20, "metric": "loss", "seed": 0}
    base = {"config_file": "tiny.py", "settings": {}, "base": to_dict(Config()), "space": SPACE, "rungs": (3, STEPS)}
    return SearchPlan(**(about | base | options))


def open_search(folder, **options) -> Trials:
    plan = plan_of(**options)
    write_search(folder, plan)
    return Trials(folder, plan)


def loss(overrides) -> float:
    """A valley at a rate of 0.01."""
    return 2 + math.log10(overrides["optimizer.learning_rate"] / 1e-2) ** 2 + 0.1 * (overrides["optimizer.b2"] < 0.95)


def train(trials: Trials, trial, run_id: str) -> str:
    """Evaluate every third step, as a worker does, and write down how it ended."""
    trials.announce(trial.number, run_id)
    status, step = "done", 0
    for step in range(3, STEPS + 1, 3):
        if trial.is_behind(step, loss(trial.overrides) + 3 / step) and step < STEPS:
            status = "pruned"
            break
    final = loss(trial.overrides) + 3 / STEPS
    row = {"id": run_id, "variant": trial.name, "status": status, "steps": step, "seconds": 1.0, "failure": None}
    trials.ledger.record(row | {"overrides": dict(trial.overrides), "final": {"loss": final}})
    trials.finish(trial.number, status, run_id=run_id, value=final)
    return status


def search(trials: Trials, most: int) -> list:
    out = []
    while trials.finished() < most:
        with trials.next(most) as trial:
            train(trials, trial, f"{trial.number:012x}")
            out.append(trial)
    return out
