"""A search's folder as the report reads it: the trials with their results, and which parameters mattered."""

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from lm.storage import exists, join
from lm.sweep.ledger import Ledger
from lm.sweep.search import JOURNAL, SearchPlan, need_optuna, overrides_of, read_search

FEWEST = 10  # trials from which an importance is told
_TOP = 0.25  # of the trials: with a tenth of 30 the order of the fields is chance
_FEWEST_TOP = 5

TrialStatus = Literal["done", "pruned", "failed", "running", "waiting"]


@dataclasses.dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
      value: the metric at the last step of a trial that is done, at the last evaluation of another one; NaN: none.
      step: of that evaluation, or how far the run came.
      overrides: config path -> value.
      failure: one line; None: it did not fail.
      result: as in results/<id>.json, empty where there is none; of an earlier trial if that had the same config.
    """

    number: int
    status: TrialStatus
    value: float
    step: int
    overrides: Mapping[str, Any]
    failure: str | None = None
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_repeated(self) -> bool:
        """An earlier trial had the same config: its run was not trained again."""
        return bool(self.result) and self.result["variant"] != f"trial {self.number}"


@dataclasses.dataclass(frozen=True)
class SearchResults:
    """A search with its trials in the order in which they were proposed.

    Attributes:
      importance: config path -> share, summing to 1, the greatest first; empty: too few trials.
    """

    folder: str
    plan: SearchPlan
    trials: tuple[TrialRow, ...]
    importance: Mapping[str, float]

    def of(self, *statuses: TrialStatus) -> list[TrialRow]:
        return [trial for trial in self.trials if trial.status in statuses]

    @property
    def best(self) -> TrialRow | None:
        return min((t for t in self.of("done") if math.isfinite(t.value)), key=lambda t: t.value, default=None)

    @property
    def steps_trained(self) -> int:
        return sum(int(trial.result.get("steps") or 0) for trial in self.trials if not trial.is_repeated)

    def ranked(self) -> list[TrialRow]:
        """Return the trials, the best first; then those ended early, the one that came farthest first; failed ones last."""
        order = {"done": 0, "pruned": 1, "running": 2, "waiting": 3, "failed": 4}

        def key(trial: TrialRow) -> tuple:
            value = trial.value if math.isfinite(trial.value) else math.inf
            return order[trial.status], -trial.step if trial.status == "pruned" else 0, value, trial.number

        return sorted(self.trials, key=key)


def read_search_results(folder: str) -> SearchResults:
    """Read a search's plan, its trials and their results.

    Raises:
      UsageError: the folder holds no search, or optuna is not installed.
      DamagedFileError: a file is damaged.
    """
    plan = read_search(folder)
    optuna = need_optuna()
    frozen = _frozen(optuna, folder, plan)
    ledger = Ledger(folder)
    finished = ledger.finished()
    rows = []
    for trial in frozen:
        run_id = trial.user_attrs.get("id")
        result = ledger.result(run_id) if run_id in finished else {}
        rows.append(_row(plan, trial, result))
    return SearchResults(folder, plan, tuple(rows), _importance(optuna, frozen))


def _frozen(optuna, folder: str, plan: SearchPlan) -> list[Any]:
    path = os.path.abspath(join(folder, JOURNAL))
    if not exists(path):
        return []
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    if plan.name not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name=plan.name, storage=storage).trials


def _row(plan: SearchPlan, trial: Any, result: Mapping[str, Any]) -> TrialRow:
    statuses: dict[str, TrialStatus] = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
    value = trial.value
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[trial.last_step]
    return TrialRow(
        number=trial.number,
        status=statuses.get(trial.state.name) or ("running" if trial.state.name == "RUNNING" else "waiting"),
        value=math.nan if value is None else value,
        step=trial.last_step or int(result.get("steps") or 0),
        overrides=overrides_of(plan, trial.params),
        failure=trial.user_attrs.get("failure"),
        result=result,
    )


def _importance(optuna, frozen: list[Any]) -> dict[str, float]:
    """Return each parameter's share in reaching the best trials (PED-ANOVA, Watanabe et al. 2023).

    It compares how a parameter is spread over the best quarter of the trials with how over all; the order of the trials
    is all that it takes of the metric. One ended early counts with its last evaluation: it was behind by then.
    """
    values = {t.number: t.value for t in frozen if t.state.name in ("COMPLETE", "PRUNED") and t.value is not None}
    if len(values) < FEWEST:
        return {}
    study = optuna.create_study()
    for trial in frozen:
        if trial.number in values:
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=values[trial.number]
                )
            )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(_TOP, _FEWEST_TOP / len(values)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
