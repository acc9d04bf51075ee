"""What a sweep's folder holds, as plain data: its plan, the result of each run, and the curves.

    sweep.json             name, description, metric, match, baseline, seeds, the variants and all planned runs
    results/<id>.json      one object for each run that ended, done or failed
    runs/<id>/             the run's folder as `lm train` makes it

A run without a result is pending. The folder may be on an object store.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lm.errors import DamagedFileError, UsageError
from lm.storage import exists, join, list_names, read_object
from lm.sweep.algebra import Variant
from lm.train.metrics import read_metrics

Status = Literal["done", "failed", "pending"]
AXES = ("tokens", "flops", "seconds")  # what a curve can be drawn over


@dataclasses.dataclass(frozen=True)
class Run:
    """One planned run and, once it ended, its result.

    Attributes:
      result: the object in results/<id>.json; empty while the run is pending.
    """

    id: str
    variant: str
    seed: int
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> Status:
        return self.result.get("status", "pending")

    @property
    def failure(self) -> str | None:
        """One line saying why a run failed; None: it did not."""
        if self.status != "failed":
            return None
        return str(self.result.get("failure") or "no reason is known")

    def number(self, name: str) -> float:
        """Return a figure of the result (`tokens`, `seconds`, `mfu`, …); NaN: not known."""
        return _number(self.result.get(name))

    def final(self, metric: str) -> float:
        """Return a metric of the validation at the last step; NaN: there is none, or it is not finite."""
        return _number((self.result.get("final") or {}).get(metric))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's plan with the results so far."""

    folder: str
    name: str
    description: str
    metric: str
    match: str
    baseline: str
    config_file: str
    seeds: tuple[int, ...]
    base: Mapping[str, Any]
    variants: tuple[Variant, ...]
    runs: tuple[Run, ...]

    def runs_of(self, variant: str) -> list[Run]:
        """Return a variant's runs in the order planned."""
        return [run for run in self.runs if run.variant == variant]

    def count(self, status: Status) -> int:
        return sum(run.status == status for run in self.runs)

    def values(self) -> dict[str, dict[int, float]]:
        """Return variant -> seed -> final metric of the runs that are done with a finite one."""
        return {
            variant.name: {
                run.seed: run.final(self.metric)
                for run in self.runs_of(variant.name)
                if run.status == "done" and math.isfinite(run.final(self.metric))
            }
            for variant in self.variants
        }

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return field -> variant -> value, of the fields in which variants differ."""
        defaults = flat(self.base)
        fields = dict.fromkeys(field for variant in self.variants for field in variant.overrides)
        table = {
            field: {variant.name: variant.overrides.get(field, defaults.get(field)) for variant in self.variants}
            for field in fields
        }
        return {field: row for field, row in table.items() if any(v != row[self.baseline] for v in row.values())}


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else math.nan


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"model.d_model": 192, …}` of a nested config."""
    out: dict[str, Any] = {}
    for name, value in section.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def is_sweep(folder: str) -> bool:
    return exists(join(folder, "sweep.json"))


def read_sweep(folder: str) -> Sweep:
    """Read a sweep's plan and the results that are there.

    Raises:
      UsageError: the folder holds no sweep.
      DamagedFileError: sweep.json or a result is not what it should be.
      LmError: a file cannot be read.
    """
    path = join(folder, "sweep.json")
    if not is_sweep(folder):
        raise UsageError(f'no sweep in "{folder}": it has no sweep.json. Give the --workdir of an `lm sweep`.')
    plan = read_object(path)
    try:
        results_folder = join(folder, "results")
        names = set(list_names(results_folder))
        results = {
            run["id"]: read_object(join(results_folder, f"{run['id']}.json"))
            for run in plan["runs"]
            if f"{run['id']}.json" in names
        }
        sweep = Sweep(
            folder=folder,
            name=plan["name"],
            description=plan.get("description") or "",
            metric=plan["metric"],
            match=plan["match"],
            baseline=plan["baseline"],
            config_file=plan.get("config_file") or "",
            seeds=tuple(plan["seeds"]),
            base=plan["base"],
            variants=tuple(Variant(variant["name"], dict(variant["overrides"])) for variant in plan["variants"]),
            runs=tuple(Run(run["id"], run["variant"], run["seed"], results.get(run["id"], {})) for run in plan["runs"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f'"{path}" is not a sweep\'s plan: {type(error).__name__} {error}.') from error
    names = {variant.name for variant in sweep.variants}
    if unknown := {sweep.baseline, *(run.variant for run in sweep.runs)} - names:
        raise DamagedFileError(f'"{path}" has no variant "{sorted(unknown)[0]}".')
    return sweep


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over a run; arrays of one length, NaN where something is not known.

    Attributes:
      is_validation: the metric was measured on validation data; else it is of the training batches.
      axes: `tokens`, `flops` and `seconds` at each of the steps.
    """

    steps: np.ndarray
    metric: np.ndarray
    is_validation: bool
    axes: Mapping[str, np.ndarray]


def read_curve(sweep: Sweep, run: Run, fewest_evaluations: float = 4) -> Curve | None:
    """Return a run's curve: of its validation metric if it was evaluated often enough, else of its training batches.

    FLOPs are those of the whole run, spread evenly over its tokens.

    Returns:
      None: the run left no metrics.

    Raises:
      DamagedFileError: metrics.jsonl has a line that is no record.
      LmError: the file cannot be read.
    """
    records = read_metrics(join(sweep.folder, "runs", run.id))
    train = [record for record in records if record.get("kind", "train") == "train"]
    evals = [record for record in records if record.get("kind") == "eval" and record.get("split") == "validation"]
    name = sweep.metric if sweep.metric in ("loss", "bits_per_byte") else "loss"
    if not train:
        return None
    is_validation = len(evals) >= fewest_evaluations
    chosen = evals if is_validation else train
    steps = np.array([record["step"] for record in chosen], float)
    at = np.array([record["step"] for record in train], float)
    tokens = np.interp(steps, at, [_number(record.get("tokens")) for record in train])
    seconds = np.interp(steps, at, _cumulative([_number(record.get("seconds")) for record in train]))
    flops_per_token = run.number("flops") / run.number("tokens") if run.number("tokens") else math.nan
    return Curve(
        steps=steps,
        metric=np.array([_number(record.get(name)) for record in chosen]),
        is_validation=is_validation,
        axes={"tokens": tokens, "flops": tokens * flops_per_token, "seconds": seconds},
    )


def read_curves(sweep: Sweep) -> dict[tuple[str, int], Curve]:
    """Return the curves of all finished runs by variant and seed, all of the same kind: one is not read beside another."""
    done = [run for run in sweep.runs if run.status == "done"]

    def read(**options) -> dict[tuple[str, int], Curve]:
        found = {(run.variant, run.seed): read_curve(sweep, run, **options) for run in done}
        return {key: curve for key, curve in found.items() if curve is not None}

    curves = read()
    if len({curve.is_validation for curve in curves.values()}) > 1:
        curves = read(fewest_evaluations=math.inf)
    return curves


def _cumulative(seconds: list[float]) -> list[float]:
    """Return wall times that go on where a resumed run's start again."""
    before, previous, out = 0.0, 0.0, []
    for now in seconds:
        if now < previous:
            before += previous
        previous = now
        out.append(before + now)
    return out
