"""`lm sweep --search`: trials of a search, by as many such commands on one folder as one likes."""

import argparse
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from lm.commands import common, report, startup, sweep_processes
from lm.errors import ConfigError, LmError, Preempted, UsageError
from lm.storage import join

_SAFE = 0.25  # of a run in which no trial ends: until then warmup and high rates mislead
_EXAMPLE = "experiments/sweeps/search_small.py"


def run(args: argparse.Namespace) -> None:
    """Have the trials done and show the report.

    Raises:
      Preempted: stopped by a signal; the same command continues.
    """
    from lm.sweep.algebra import Search
    from lm.sweep.search import need_disk, need_optuna, write_search

    for name in ("seeds", "retry_failed"):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for sweeps; a search has none.")
    need_disk(args.workdir)
    startup.leave_devices_alone()
    need_optuna()
    search = common.call_in_file(args.config, "get_search", like=_EXAMPLE)
    if not isinstance(search, Search):
        raise ConfigError(f'"{args.config}": get_search() returned {search!r:.60}; expected a lm.sweep.algebra.Search.')
    plan = _plan(args, search)
    if args.dry_run:
        _show(plan, args.json)
        return
    write_search(args.workdir, plan)
    if args.search == "optuna" and plan.rungs[0] >= plan.rungs[1]:
        common.note("no trial ends early: config.eval.every_steps leaves no evaluation before the last step")
    folders = [os.path.dirname(os.path.abspath(file)) for file in (args.config, plan.config_file)]
    _search(args, plan, folders)
    report.run(argparse.Namespace(folder=args.workdir, out=None, format="html", json=args.json))


def _plan(args: argparse.Namespace, search):
    """Return the plan of a search; its data is prepared here."""
    from lm.data.dataset import open_data
    from lm.data.prepare import prepare
    from lm.sweep.algebra import Variant
    from lm.sweep.plan import run_of, with_overrides
    from lm.sweep.search import SearchPlan

    config_file = sweep_processes.base_file(args, search)
    config_dict = sweep_processes.base_config(args, search)
    base, progress = config_dict.to_dict(), common.data_progress(common.note)
    with_overrides(base, dict.fromkeys(search.space))  # unknown fields are refused here
    plain = run_of(Variant("base", {}), base, base, lambda config: open_data(prepare(config.data, progress=progress)))
    return SearchPlan(
        name=os.path.splitext(os.path.basename(args.config))[0],
        description=sweep_processes.first_paragraph(args.config),
        kind=args.search,
        trials=args.trials or search.trials,
        metric=search.metric,
        seed=search.seed,
        space=search.space,
        rungs=(_first_rung(base["eval"]["every_steps"], plain.steps), plain.steps),
        config_file=config_file,
        settings=dict(search.base) | {path: _at(base, path) for path, _ in args.overrides},
        base=base,
    )


def _first_rung(every_steps: int, num_steps: int) -> int:
    """Return the step of the first evaluation after `_SAFE` of a run."""
    return every_steps * math.ceil(_SAFE * num_steps / every_steps)


def _at(section: Mapping[str, Any], path: str) -> Any:
    for name in path.split("."):
        section = section[name]
    return section


def _show(plan, as_json: bool) -> None:
    """Print what would be searched."""
    if as_json:
        print(common.result_json({"trials": plan.trials, "space": {path: vars(v) for path, v in plan.space.items()}}))
        return
    from lm.report.search_text import space_text

    width = max(map(len, plan.space))
    print("\n".join(f"{path:<{width}}  {space_text(values)}" for path, values in plan.space.items()))
    print(f"{plan.trials} trials of up to {plan.rungs[1]} steps")


def _search(args: argparse.Namespace, plan, extensions: list[str]) -> None:
    """Run a worker, and another one after each that dies, until all trials have ended.

    Raises:
      Preempted: stopped by a signal.
      LmError: a worker ends before its first trial, or for a reason that is no trial's.
    """
    from lm.commands.sweep_worker import EXIT_NEW_PROCESS
    from lm.sweep.search import Trials

    trials, deaths = Trials(args.workdir, plan), 0
    arguments = ["--workdir", args.workdir, "--search", plan.kind, "--trials", str(plan.trials), "--worker", "search"]
    while trials.finished() < plan.trials:
        start = time.monotonic()
        ended = sweep_processes.run_worker(["sweep", *arguments, "--extensions", *extensions])
        trials.derive()
        if ended.code == Preempted.exit_code:
            left = plan.trials - trials.finished()
            raise Preempted(f"stopped with {left} of {plan.trials} trials to go; the same command continues.")
        if ended.code in (0, EXIT_NEW_PROCESS):
            deaths = 0
            continue
        left = trials.left_by(ended.pid)
        # A worker beside this one may have taken up its trial already: one death without a trace is no proof.
        deaths = 0 if left else deaths + 1
        if deaths > 1 or (not left and ended.code in (LmError.exit_code, UsageError.exit_code)):
            raise LmError(f"a worker ended: {ended.reason}")
        for trial in left:
            _record_death(args.workdir, plan, trials, trial, ended.reason, time.monotonic() - start)
        trials.derive()


def _record_death(folder: str, plan, trials, trial, reason: str, seconds: float) -> None:
    """Write down what a worker did not live to tell."""
    from lm.commands.sweep_worker import result_of
    from lm.sweep.search import overrides_of

    run_id = trial.user_attrs.get("id")
    if run_id:
        result = result_of(join(folder, "runs", run_id), None, plan.metric, reason, seconds, None)
        about = {"id": run_id, "variant": f"trial {trial.number}", "overrides": overrides_of(plan, trial.params)}
        trials.ledger.record({**about, "seed": plan.base["seed"], **result})
    trials.finish(trial.number, "failed", run_id=run_id, failure=reason)
    common.note(f"trial {trial.number}: {reason}")
