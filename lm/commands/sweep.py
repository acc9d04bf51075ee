"""`lm sweep`: every variant of a config with every seed, and what the difference is worth."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence

from lm.commands import common, report, startup, supervisor, sweep_processes, sweep_search
from lm.errors import ConfigError, LmError, Preempted, UsageError
from lm.storage import exists, join, make_folder

HELP = "Train every variant of a sweep with every seed; continues where it stopped. Several workers may share a folder."

_POLL_SECONDS = 2.0  # between two looks at what other workers have finished


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a Python file with a get_sweep(), see experiments/sweeps/")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the sweep's folder, local or gs://, s3://")
    parser.add_argument("--base", metavar="FILE", help="another config file than the sweep's own")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first N seeds instead of the sweep's own")
    parser.add_argument(
        "--search",
        choices=("optuna", "random"),
        help="look for the best config: FILE has a get_search(); optuna: TPE with Hyperband, random: draws",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="of a search, instead of its own number")
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed")
    parser.add_argument("--dry-run", action="store_true", help="show the runs, and start none")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--worker", metavar="IDS", help=argparse.SUPPRESS)
    parser.add_argument("--extensions", nargs="*", default=(), metavar="DIR", help=argparse.SUPPRESS)
    parser.epilog = (
        "example:\n"
        "  lm sweep --config experiments/sweeps/swiglu_vs_gelu.py --workdir runs/swiglu_vs_gelu\n"
        "  lm sweep --config experiments/sweeps/swiglu_vs_gelu.py --workdir runs/swiglu_1b \\\n"
        "    --base experiments/llama_1b.py --seeds 5\n"
        "  lm sweep --config experiments/sweeps/search_small.py --workdir runs/search --search optuna --trials 30\n\n"
        "Overrides (--config.optimizer.num_steps=2000) hold for every variant. The same command continues, on this\n"
        "machine or beside another worker on the same folder. `lm report DIR` shows the results at any time."
    )


def run(args: argparse.Namespace) -> None:
    if args.worker:
        supervisor.die_with_parent()
        for folder in args.extensions:
            common.find_extensions_in(folder)
        sys.exit(_work(args))
    if not args.config:
        raise UsageError("--config FILE is needed: a Python file with a get_sweep(), see experiments/sweeps/.")
    common.require_positive(args, "seeds", "trials")
    if args.search:
        sweep_search.run(args)
        return
    if args.trials:
        raise UsageError("--trials is for a search: add --search optuna, or --search random.")
    if exists(join(args.workdir, "search.json")):
        raise UsageError(f'"{args.workdir}" holds a search: add --search, or choose another --workdir.')
    startup.leave_devices_alone()
    from lm.sweep.algebra import Sweep
    from lm.sweep.plan import calibration_of

    sweep = common.call_in_file(args.config, "get_sweep", like="experiments/sweeps/swiglu_vs_gelu.py")
    if not isinstance(sweep, Sweep):
        raise ConfigError(f'"{args.config}": get_sweep() returned {sweep!r:.60}; expected a lm.sweep.algebra.Sweep.')
    if args.seeds:
        sweep = dataclasses.replace(sweep, seeds=tuple(range(args.seeds)))
    files, rates = (args.config, sweep_processes.base_file(args, sweep)), None
    folders = [os.path.dirname(os.path.abspath(file)) for file in files]
    if sweep.match == "seconds":
        calibration = _Runs(join(args.workdir, "calibration"), _plan(args, calibration_of(sweep)), folders)
        if args.dry_run:
            common.note("these runs measure the variants' speeds; how long the sweep's own are follows from them")
            calibration.show(args.json)
            return
        calibration.run(retry_failed=args.retry_failed)
        rates = calibration.rates()
    runs = _Runs(args.workdir, _plan(args, sweep, rates), folders)
    if args.dry_run:
        runs.show(args.json)
        return
    runs.run(retry_failed=args.retry_failed)
    report.run(argparse.Namespace(folder=args.workdir, out=None, format="html", json=args.json))


def _work(args: argparse.Namespace) -> int:
    if args.search:
        from lm.commands.sweep_search_worker import search_on

        return search_on(args.workdir, args.trials)
    from lm.commands.sweep_worker import work

    return work(args.workdir, args.worker.split(","))


def _plan(args: argparse.Namespace, sweep, rates: dict[str, float] | None = None):
    """Return the plan of a sweep; its data is prepared here."""
    from lm.data.dataset import open_data
    from lm.data.prepare import prepare
    from lm.sweep.plan import make_plan

    config_file = sweep_processes.base_file(args, sweep)
    config_dict = sweep_processes.base_config(args, sweep)
    progress = common.data_progress(common.note)
    return make_plan(
        dataclasses.replace(sweep, config=config_file),
        config_dict.to_dict(),
        lambda config: open_data(prepare(config.data, progress=progress)),
        name=os.path.splitext(os.path.basename(args.config))[0],
        description=sweep_processes.first_paragraph(args.config),
        rates=rates,
    )


class _Runs:
    """The runs of a sweep, as the process sees them that starts the workers."""

    def __init__(self, folder: str, plan, extensions: Sequence[str]):
        """`extensions`: folders in which what the configs name as "package.module:Name" is found."""
        self._folder, self._plan, self._extensions = folder, plan, extensions

    def run(self, *, retry_failed: bool = False) -> None:
        """Have every run done, here or by another worker.

        Raises:
          Preempted: stopped by a signal; the same command continues.
          LmError: a worker ended before its first run.
        """
        from lm.sweep.ledger import Ledger
        from lm.sweep.plan import write_plan

        make_folder(self._folder)
        write_plan(self._folder, self._plan)
        ledger, ids, is_waiting = Ledger(self._folder), [run.id for run in self._plan.runs], False
        if retry_failed:
            for run_id in ledger.finished() & set(ids):
                if ledger.result(run_id)["status"] == "failed":
                    ledger.forget(run_id)
        while True:
            finished = ledger.finished()
            pending = [run for run in self._plan.runs if run.id not in finished]
            free = [run for run in pending if not ledger.is_held(run.id)]
            if not pending:
                break
            if not free:
                if not is_waiting:
                    common.note(f"waiting for {len(pending)} runs of other workers")
                is_waiting = True
                time.sleep(_POLL_SECONDS)
                continue
            is_waiting = False
            job = [run.id for run in free if (run.group, run.seed) == (free[0].group, free[0].seed)]
            self._train(job, ledger)
            ledger.derive(ids)
        ledger.derive(ids)

    def rates(self) -> dict[str, float]:
        """Return training tokens per second by variant.

        Raises:
          LmError: a variant's run failed.
        """
        from lm.sweep.ledger import Ledger

        ledger, rates = Ledger(self._folder), {}
        for run in self._plan.runs:
            result = ledger.result(run.id)
            if result["status"] == "failed" or not result["tokens_per_second"]:
                raise LmError(f'the speed of variant "{run.variant}" could not be measured: {result["failure"]}.')
            rates[run.variant] = result["tokens_per_second"]
        return rates

    def show(self, as_json: bool) -> None:
        """Print the runs."""
        rows = [
            {"id": r.id, "variant": r.variant, "seed": r.seed, "group": r.group, "steps": r.steps, "tokens": r.tokens}
            for r in self._plan.runs
        ]
        if as_json:
            print(common.result_json(rows))
            return
        width = max(len(row["variant"]) for row in rows)
        print(f"{'id':<12}  {'variant':<{width}}  {'seed':>4}  {'compiled as':<12}  {'steps':>8}  {'tokens':>14}")
        for row in rows:
            print(
                f"{row['id']:<12}  {row['variant']:<{width}}  {row['seed']:>4}  {row['group']:<12}  "
                f"{row['steps']:>8,}  {row['tokens']:>14,}"
            )
        programs = len({row["group"] for row in rows})
        print(f"{len(rows)} runs, {programs} compilation{'s' * (programs > 1)}")

    def _train(self, job: list[str], ledger) -> None:
        """Run a worker process for some runs of one group, and write down what it did not live to tell."""
        from lm.commands.sweep_worker import EXIT_NEW_PROCESS, result_of

        start = time.monotonic()
        arguments = ["--workdir", self._folder, "--worker", ",".join(job), "--extensions", *self._extensions]
        ended = sweep_processes.run_worker(["sweep", *arguments])
        if ended.code in (0, EXIT_NEW_PROCESS):
            return
        if ended.code == Preempted.exit_code:
            left = len({run.id for run in self._plan.runs} - ledger.finished())
            raise Preempted(f"stopped with {left} of {len(self._plan.runs)} runs to go; the same command continues.")
        left = [run_id for run_id in job if ledger.was_left_by(run_id, ended.pid)]
        if not left:
            raise LmError(f"a worker ended before its first run: {ended.reason}")
        for run in (run for run in self._plan.runs if run.id in left):
            workdir, seconds = join(self._folder, "runs", run.id), time.monotonic() - start
            result = result_of(workdir, None, self._plan.sweep.metric, ended.reason, seconds, None)
            ledger.record({**run.about, **result})
            common.note(f"{run.variant}, seed {run.seed}: {ended.reason}")
