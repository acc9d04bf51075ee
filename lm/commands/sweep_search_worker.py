"""The process of a search that trains: one trial after the other, those of one program on one compilation."""

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any

from lm.commands import common
from lm.commands.sweep_worker import EXIT_NEW_PROCESS, Pruned, attempt
from lm.commands.training import Shared
from lm.errors import ConfigError, LmError
from lm.storage import join
from lm.sweep.algebra import Variant
from lm.sweep.plan import Run, once_each, run_of, with_overrides
from lm.sweep.search import SearchPlan, Trial, Trials, read_search

_POLL_SECONDS = 1.0  # between two looks at what other workers have finished
_MOST_PROGRAMS = 16  # compiled by one process, whose memory they take


def search_on(folder: str, most: int) -> int:
    """Do trials until there are `most` that have ended, here or elsewhere; returns the exit code.

    Raises:
      Preempted: stopped by a signal; the trial at hand is saved, and continues with whoever comes next.
    """
    from lm.train.interrupts import Interrupts

    plan = read_search(folder)
    worker, groups = _Worker(folder, plan, Trials(folder, plan)), set()
    with Interrupts().installed() as interrupts:
        while worker.trials.finished() < most:
            with worker.trials.next(most) as trial:
                if trial is None:
                    time.sleep(_POLL_SECONDS)
                    continue
                group, is_exhausted = worker.do(trial, interrupts)
            worker.tell(trial, most)
            groups.add(group)
            if is_exhausted or len(groups) >= _MOST_PROGRAMS:
                return EXIT_NEW_PROCESS
    return 0


class _Worker:
    def __init__(self, folder: str, plan: SearchPlan, trials: Trials):
        from lm.data.dataset import open_data
        from lm.data.prepare import prepare

        self.trials = trials
        self._folder, self._plan, self._shared = folder, plan, Shared()
        self._open_dataset = once_each(lambda config: open_data(prepare(config.data)))

    def do(self, trial: Trial, interrupts) -> tuple[str | None, bool]:
        """Train a trial's run unless another has; return the run's group, and whether the device is out of memory."""
        ledger, is_exhausted = self.trials.ledger, False
        try:
            config_dict = with_overrides(self._plan.base, trial.overrides)
            variant = Variant(trial.name, trial.overrides)
            run = run_of(variant, config_dict, self._plan.base, self._open_dataset)
        except ConfigError as error:  # values that do not go together
            self.trials.finish(trial.number, "failed", failure=str(error))
            return None, False
        self.trials.announce(trial.number, run.id)
        while run.id not in ledger.finished():
            with ledger.claimed(run.id) as is_mine:
                if is_mine:
                    result, is_exhausted = self._train(run, trial, interrupts)
                    ledger.record({**run.about, **result})
                    break
            time.sleep(_POLL_SECONDS)  # another trial has the same config
        result = ledger.result(run.id)
        for step, value in _evaluations(join(self._folder, result["folder"]), self._plan.metric):
            trial.is_behind(step, value)  # reported already, unless an earlier trial had this config
        value = result["final"][self._plan.metric] if result["status"] == "done" else None
        self.trials.finish(trial.number, result["status"], run_id=run.id, value=value, failure=result["failure"])
        return run.group, is_exhausted

    def _train(self, run: Run, trial: Trial, interrupts) -> tuple[dict[str, Any], bool]:
        def watch(record: Mapping[str, Any]) -> None:
            if (record.get("kind"), record.get("split")) != ("eval", "validation"):
                return
            value = record.get(self._plan.metric)
            is_behind = value is not None and trial.is_behind(record["step"], value)
            if is_behind and record["step"] < run.steps:
                raise Pruned(f"{trial.name} is behind at step {record['step']}.")

        return attempt(
            self._folder,
            run,
            trial.name,
            config_file=self._plan.config_file,
            metric=self._plan.metric,
            interrupts=interrupts,
            shared=self._shared,
            watch=watch,
        )

    def tell(self, trial: Trial, most: int) -> None:
        """One line about a trial that ended."""
        from lm.train.console import duration

        frozen = self.trials.study.get_trials(deepcopy=False)
        finished, ended = [t for t in frozen if t.state.is_finished()], frozen[trial.number]
        unit = self._plan.metric.replace("_", " ")
        what = ended.user_attrs.get("failure") or (f"{ended.value:.4f} {unit}" if ended.value is not None else "failed")
        if ended.state.name == "PRUNED":
            what = f"ended early at step {ended.last_step} with {ended.intermediate_values[ended.last_step]:.4f} {unit}"
        line = f"{trial.name}: {what}; {len(finished)} of {most} trials"
        if done := [t for t in finished if t.state.name == "COMPLETE"]:
            best = min(done, key=lambda t: t.value)
            line += f", best {best.value:.4f} in trial {best.number}"
        seconds = sum(t.duration.total_seconds() for t in finished if t.duration) / len(finished)
        if left := most - len(finished):
            line += f", about {duration(seconds * left)} left for one worker"
        common.note(line)


def _evaluations(workdir: str, metric: str) -> list[tuple[int, float]]:
    """Return step and finite metric of a run's evaluations."""
    from lm.train.metrics import read_metrics

    records: list[dict[str, Any]] = []
    with contextlib.suppress(LmError):
        records = read_metrics(workdir)
    evals = [r for r in records if (r.get("kind"), r.get("split")) == ("eval", "validation")]
    return [(r["step"], r[metric]) for r in evals if math.isfinite(r.get(metric) or math.nan)]
