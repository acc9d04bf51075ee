"""A hyperparameter search: trials proposed from what those before have shown, and ended early when they are behind.

Optuna (Akiba et al. 2019) proposes by a tree-structured Parzen estimator (Bergstra et al. 2011) and ends trials by
Hyperband (Li et al. 2018), or draws at random and ends none. Any number of workers share a search's folder, which is
on a disk that all of them see:

  search.json       what is searched, and how
  optuna.journal    the trials
  results/<id>.json, claims/, runs/<id>/, ledger.jsonl    as in a sweep

What is proposed depends on the seed and the trials before, not on how often the search was stopped: each trial's
draws have a seed of their own.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from lm.errors import ConfigError, DamagedFileError, UsageError
from lm.storage import exists, is_remote, join, locked, make_folder, read_object, write_atomic
from lm.sweep.algebra import Choice, Uniform
from lm.sweep.ledger import Ledger

SEARCH = "search.json"
JOURNAL = "optuna.journal"
MOST_INTERRUPTIONS = 3  # of a trial whose worker is gone without a word, before it counts as failed
REDUCTION = 3  # of the trials of a Hyperband bracket, one in so many goes on at each rung

Kind = Literal["optuna", "random"]
Status = Literal["done", "pruned", "failed"]


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """What `search.json` holds.

    Attributes:
      kind: `optuna`: TPE with Hyperband; `random`: draws, none of which ends early.
      trials: how many are wanted.
      rungs: the first step after which a trial may end early, and the number of steps.
      config_file: the base config's.
      settings: config path -> value, in which the base differs from that file.
      base: the whole base config as plain data.
    """

    name: str
    description: str
    kind: Kind
    trials: int
    metric: str
    seed: int
    space: Mapping[str, Uniform | Choice]
    rungs: tuple[int, int]
    config_file: str
    settings: Mapping[str, Any]
    base: Mapping[str, Any]


def is_search(folder: str) -> bool:
    return exists(join(folder, SEARCH))


def need_disk(folder: str) -> None:
    """Refuse a folder on an object store.

    Raises:
      UsageError: it is on one.
    """
    if is_remote(folder):
        raise UsageError(f"--workdir {folder}: a search keeps a journal, which needs a local or network disk.")


def write_search(folder: str, plan: SearchPlan) -> None:
    """Write `search.json`.

    Raises:
      UsageError: the folder is not on a disk.
      ConfigError: it holds another search, or a sweep.
    """
    need_disk(folder)
    if exists(join(folder, "sweep.json")):
        raise ConfigError(f'"{folder}" holds a sweep; choose another --workdir.')
    content = _plain(plan)
    if is_search(folder):
        there = _plain(read_search(folder))
        if different := [
            name for name in content if name not in ("trials", "description") and content[name] != there[name]
        ]:
            raise ConfigError(
                f'"{folder}" holds another search ({", ".join(different)} differ); choose another --workdir.'
            )
    make_folder(folder)
    write_atomic(join(folder, SEARCH), json.dumps(content, indent=1) + "\n")


def read_search(folder: str) -> SearchPlan:
    """Return what is searched.

    Raises:
      UsageError: the folder holds no search.
      DamagedFileError: the file is damaged.
    """
    path = join(folder, SEARCH)
    if not is_search(folder):
        raise UsageError(f'no search in "{folder}": it has no {SEARCH}. Give the --workdir of an `lm sweep --search`.')
    content = read_object(path)
    try:
        content["rungs"] = tuple(content["rungs"])
        content["space"] = {
            name: Choice(tuple(values["values"])) if "values" in values else Uniform(**values)
            for name, values in content["space"].items()
        }
        return SearchPlan(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}.') from error


def _plain(plan: SearchPlan) -> dict[str, Any]:
    """Return a plan as what JSON makes of it."""
    space = {name: dataclasses.asdict(values) for name, values in plan.space.items()}
    return json.loads(json.dumps({**vars(plan), "space": space}, default=str))


def need_optuna():
    """Return the package.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(f"a hyperparameter search needs optuna ({error}): pip install -e '.[sweep]'.") from error
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial at work.

    Attributes:
      number: from 0.
      overrides: config path -> the value proposed.
    """

    number: int
    overrides: Mapping[str, Any]
    proposal: Any  # optuna's

    @property
    def name(self) -> str:
        return trial_name(self.number)

    def is_behind(self, step: int, value: float) -> bool:
        """Take an evaluation; return whether the trial should end here."""
        if not math.isfinite(value):
            return False
        reported = self.proposal.study.get_trials(deepcopy=False)[self.number].intermediate_values
        if step not in reported:  # else it continues, or repeats another's run
            self.proposal.report(value, step)
        return self.proposal.should_prune()


def trial_name(number: int) -> str:
    return f"trial {number}"


class Trials:
    """The trials of a search's folder, as one process sees them.

    At any time each trial is finished, held by a live worker's claim, or waiting: a worker that is gone without a word
    leaves its trial to the next one that looks.
    """

    def __init__(self, folder: str, plan: SearchPlan):
        optuna = need_optuna()
        self._folder, self._plan, self._optuna = folder, plan, optuna
        self.ledger = Ledger(folder)
        # The whole path: Optuna's lock is a link to it.
        journal = optuna.storages.journal.JournalFileBackend(os.path.abspath(join(folder, JOURNAL)))
        self._storage = optuna.storages.JournalStorage(journal)
        self._study = optuna.create_study(
            study_name=plan.name,
            storage=self._storage,
            sampler=self._sampler(0),
            pruner=self._pruner(),
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(plan.name)

    @property
    def study(self) -> Any:
        """Optuna's study, to be read."""
        return self._study

    def finished(self) -> int:
        """Return how many trials are done, pruned or failed."""
        return sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))

    @contextlib.contextmanager
    def next(self, most: int) -> Iterator[Trial | None]:
        """Hold the next of `most` trials within the block; None: all are finished or others' at this moment.

        A trial that the block does not `finish` waits for whoever comes next, who continues its run.
        """
        with contextlib.ExitStack() as held:
            with self._turn():
                self._settle()
                number = self._free(most)
                if number is not None:
                    self._study.sampler = self._sampler(number)
                    proposal = self._study.ask()
                    held.enter_context(self.ledger.claimed(_claim_name(proposal.number)))
            if number is None:
                yield None
                return
            try:
                overrides = {path: _suggest(proposal, path, values) for path, values in self._plan.space.items()}
                yield Trial(proposal.number, overrides, proposal)
            finally:
                with self._turn():
                    if self._state(proposal.number) == self._optuna.trial.TrialState.RUNNING:
                        self._put_back(proposal.number)

    def finish(
        self,
        number: int,
        status: Status,
        *,
        run_id: str | None = None,
        value: float | None = None,
        failure: str | None = None,
    ) -> None:
        """Say how a trial ended.

        Args:
          number: the trial's.
          status: `done` has a value; `pruned` has that of the last evaluation reported.
          run_id: of its run.
          value: of the metric.
          failure: why, in one line.
        """
        states = self._optuna.trial.TrialState
        state = {"done": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[status]
        for name, content in (("id", run_id), ("failure", failure)):
            if content is not None:
                self._note(number, name, content)
        self._study.tell(number, value if status == "done" else None, state, skip_if_finished=True)

    def left_by(self, pid: int) -> list[Any]:
        """Return the trials (Optuna's, frozen) that a process of this machine, which is gone, did not end."""
        with self._turn():
            return [t for t in self._running() if self.ledger.was_left_by(_claim_name(t.number), pid)]

    def derive(self) -> None:
        """Write `ledger.jsonl`: the results in the order of the trials."""
        trials = self._study.get_trials(deepcopy=False)
        self.ledger.derive([trial.user_attrs["id"] for trial in trials if "id" in trial.user_attrs])

    def announce(self, number: int, run_id: str) -> None:
        """Write down which run a trial trains, before it does."""
        self._note(number, "id", run_id)

    def _note(self, number: int, name: str, content: Any) -> None:
        self._storage.set_trial_user_attr(self._trial_id(number), name, content)

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """One process at a time decides which trial is whose; a process that dies in its turn ends it."""
        return locked(join(self._folder, "claims"), waiting=lambda: None)

    def _running(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,))

    def _settle(self) -> None:
        """Let the trials wait, or fail, whose worker is gone."""
        for trial in self._running():
            if self.ledger.is_held(_claim_name(trial.number)):
                continue
            interruptions = trial.user_attrs.get("interruptions", 0) + 1
            self._note(trial.number, "interruptions", interruptions)
            if interruptions < MOST_INTERRUPTIONS:
                self._put_back(trial.number)
            else:
                self.finish(trial.number, "failed", failure=f"its process was ended {interruptions} times")

    def _free(self, most: int) -> int | None:
        """Return the number of a trial to begin, or to continue."""
        trials = self._study.get_trials(deepcopy=False)
        waiting = [t.number for t in trials if t.state == self._optuna.trial.TrialState.WAITING and t.number < most]
        if waiting:
            return waiting[0]
        return len(trials) if len(trials) < most else None

    def _put_back(self, number: int) -> None:
        # Its parameters stay, so that it is the same trial when it is asked for again.
        self._storage.set_trial_state_values(self._trial_id(number), self._optuna.trial.TrialState.WAITING)

    def _state(self, number: int) -> Any:
        return self._study.get_trials(deepcopy=False)[number].state

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _sampler(self, number: int) -> Any:
        seed = int(np.random.SeedSequence([self._plan.seed, number]).generate_state(1)[0])
        if self._plan.kind == "random":
            return self._optuna.samplers.RandomSampler(seed=seed)
        return self._optuna.samplers.TPESampler(seed=seed)

    def _pruner(self) -> Any:
        first, last = self._plan.rungs
        if self._plan.kind == "random" or first >= last:
            return self._optuna.pruners.NopPruner()
        return self._optuna.pruners.HyperbandPruner(min_resource=first, max_resource=last, reduction_factor=REDUCTION)


def _claim_name(number: int) -> str:
    return f"trial-{number}"


def _suggest(proposal: Any, path: str, values: Uniform | Choice) -> Any:
    if isinstance(values, Choice):
        proposed = proposal.suggest_categorical(path, _labels(values))
    elif values.integer:
        proposed = proposal.suggest_int(path, int(values.low), int(values.high), log=values.log)
    else:
        proposed = proposal.suggest_float(path, values.low, values.high, log=values.log)
    return value_of(values, proposed)


def overrides_of(plan: SearchPlan, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return config path -> value of the parameters that Optuna has proposed."""
    return {path: value_of(values, params[path]) for path, values in plan.space.items() if path in params}


def value_of(values: Uniform | Choice, proposed: Any) -> Any:
    """Return the value that a run gets, of what Optuna has proposed."""
    if isinstance(values, Choice):
        return values.values[_labels(values).index(proposed)]
    return proposed if values.integer else float(f"{proposed:.4g}")


def _labels(values: Choice) -> list[Any]:
    """Return what stands for the values where only plain ones may."""
    return [v if isinstance(v, bool | int | float | str) or v is None else json.dumps(v) for v in values.values]
