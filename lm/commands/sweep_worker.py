"""The process of a sweep that trains: runs of one compilation, one after the other."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from lm.checkpoint.ranking import METRIC
from lm.commands import common, sweep_together
from lm.commands.environment import describe_environment
from lm.commands.training import Shared, run_training
from lm.config import Config, to_dict
from lm.errors import LmError, Preempted
from lm.storage import join
from lm.sweep.ledger import Ledger
from lm.sweep.plan import Run, read_plan, training_flops
from lm.train.console import Console

EXIT_NEW_PROCESS = 75  # the device may be left without memory: the other runs go on in a new process


def work(folder: str, run_ids: list[str]) -> int:
    """Train the runs that nobody has begun or finished, and write a result for each; returns the exit code.

    A run that fails is a result too. All runs must be of one group.

    Raises:
      Preempted: stopped by a signal; the run at hand is saved.
    """
    from lm.train.interrupts import Interrupts

    plan, ledger, shared = read_plan(folder), Ledger(folder), Shared()
    runs = {run.id: run for run in plan["runs"]}
    with Interrupts().installed() as interrupts:
        for run, result in sweep_together.attempt(folder, run_ids, plan, ledger, interrupts, shared):
            if result is None:
                del runs[run.id]
                continue
            ledger.record({**run.about, **result})
            _tell(run, result, plan, ledger)
        for run in (runs[run_id] for run_id in run_ids if run_id in runs):
            with ledger.claimed(run.id) as is_mine:
                if not is_mine:
                    continue
                result, is_exhausted = attempt(
                    folder,
                    run,
                    f"{run.variant}, seed {run.seed}",
                    config_file=plan["config_file"],
                    metric=plan["metric"],
                    interrupts=interrupts,
                    shared=shared,
                )
                ledger.record({**run.about, **result})
                _tell(run, result, plan, ledger)
                if is_exhausted:
                    return EXIT_NEW_PROCESS
    return 0


def _tell(run: Run, result: dict[str, Any], plan: dict[str, Any], ledger: Ledger) -> None:
    """One line about a run that ended, and how long the others may take."""
    from lm.train.console import duration

    figure = result["failure"] or f"{result['final'][plan['metric']]:.4f} {plan['metric'].replace('_', ' ')}"
    planned = {planned.id for planned in plan["runs"]}
    done = planned & ledger.finished()
    seconds = sorted(ledger.result(run_id)["seconds"] for run_id in done)
    left = seconds[len(seconds) // 2] * (len(planned) - len(done))
    rest = f", about {duration(left)} left" if left else ""
    common.note(
        f"{run.variant}, seed {run.seed}: {figure} after {duration(result['seconds'])}; "
        f"{len(done)} of {len(planned)} runs{rest}"
    )


class Pruned(Preempted):
    """A trial is behind the others: the loop lets this through and saves nothing."""


def attempt(
    folder: str,
    run: Run,
    name: str,
    *,
    config_file: str,
    metric: str,
    interrupts,
    shared: Shared,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Train one run; return its result (see `result_of`), and whether the device is out of memory.

    Args:
      folder: of the sweep or the search.
      run: what is trained.
      name: of the run, on stderr.
      config_file: where its config comes from.
      metric: by which its best evaluation is chosen.
      interrupts: `lm.train.interrupts.Interrupts`, installed.
      shared: with the other runs of this process.
      watch: sees each record, and may raise `Pruned`.

    Raises:
      Preempted: stopped by a signal; the run is saved.
    """
    from ml_collections import ConfigDict

    workdir, start, config = join(folder, "runs", run.id), time.monotonic(), None
    is_exhausted, is_pruned = False, False
    try:
        config = common.resolve_here(ConfigDict(dict(run.config), type_safe=False))
        run_training(
            config,
            workdir,
            config_file=config_file,
            interrupts=interrupts,
            shared=shared,
            console=lambda workdir, num_steps: _Console(workdir, num_steps, name, watch),
            with_report=False,
        )
        failure = None
    except Pruned:
        failure, is_pruned = None, True
    except Preempted:
        raise
    except LmError as error:
        failure = str(error)
    except Exception as error:  # what a variant's own code raises is its result
        is_exhausted = "RESOURCE_EXHAUSTED" in str(error)
        text = " ".join(str(error).split())[:300]
        failure = "out of memory on the device" if is_exhausted else f"{type(error).__name__}: {text}"
    result = result_of(workdir, config, metric, failure, time.monotonic() - start, shared)
    if is_pruned:
        result |= {"status": "pruned", "final": None}
    return result, is_exhausted


def result_of(
    workdir: str, config: Config | None, metric: str, failure: str | None, seconds: float, shared: Shared | None
) -> dict[str, Any]:
    """Return a run's result from its folder, which may hold nothing.

    Args:
      workdir: the run's folder.
      config: resolved; None: it could not be.
      metric: by which the best evaluation is chosen.
      failure: why it failed, in one line.
      seconds: it took.
      shared: holds the compiled step, whose memory is told.
    """
    from lm.checkpoint.run_folder import read_run_info
    from lm.resolve import with_vocabulary
    from lm.train.metrics import read_metrics

    info, records = {}, []
    with contextlib.suppress(LmError):
        info = read_run_info(workdir)
        records = read_metrics(workdir)
    evals = [r for r in records if (r.get("kind"), r.get("split")) == ("eval", "validation")]
    train = [r for r in records if r.get("kind", "train") == "train"]
    figures = [{n: r.get(n) for n in ("step", "loss", "perplexity", METRIC, "tokens", "bytes")} for r in evals]
    finite = [figure for figure in figures if figure[metric] is not None]
    final = figures[-1] if figures and failure is None else None
    if failure is None and (final is None or final[metric] is None):
        failure = "the validation has no finite figure at the last step"
    steps, flops = max((r["step"] for r in [*train, *evals]), default=0), None
    if config is not None and info:
        config = with_vocabulary(config, info["config"]["model"]["vocab_size"])
        flops = training_flops(config, steps)
    return {
        "status": "done" if failure is None else "failed",
        "failure": failure,
        "final": final,
        "best": min(finite, key=lambda figure: figure[metric], default=None),
        "steps": steps,
        "tokens": max((r.get("tokens", 0) for r in train), default=0),  # the record of a step that failed has none
        "flops": flops,
        "num_parameters": info.get("num_parameters"),
        "tokens_per_second": _median([r["tokens_per_second"] for r in train if r.get("tokens_per_second")]),
        "mfu": _median([r["mfu"] for r in train if r.get("mfu")]),
        "peak_memory_bytes": shared.step_bytes(config) if shared and config else None,
        "seconds": seconds,
        "git_commit": info.get("git_commit") or describe_environment()["git_commit"],
        "config": info.get("config") or (to_dict(config) if config else None),
        "folder": f"runs/{os.path.basename(workdir)}",
    }


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


class _Console(Console):
    """A run's `log.txt`, and a line on stderr now and then."""

    def __init__(self, workdir: str, num_steps: int, name: str, watch: Callable[[Mapping[str, Any]], None] | None):
        super().__init__(workdir, num_steps, file=open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the run
        self._num_steps, self._progress, self._watch = num_steps, common.progress_line(name, "steps"), watch

    def write(self, record) -> None:
        super().write(record)
        if record.get("kind", "train") == "train":
            self._progress(record["step"], self._num_steps)
        if self._watch:
            self._watch(record)
