"""The race of the optimizers: the model and data of `experiments/tiny.py`, one grid of learning rates, three seeds.

    python -m experiments.benchmarks.optimizers --out runs/optimizers

Every optimizer sees the same batches, the same initial parameters per seed, and the same learning rates. From
tiny.py come model, data, warmup, schedule and the embeddings' learning-rate multiplier; b1 is 0.9 and b2 0.95 for all,
there is one learning rate for all parameters, and `OPTIMIZERS` below says what else each has of its own.

One result file per (optimizer, learning rate, seed): stop it at any time, the same command goes on. Each optimizer is
compiled once: learning rate and seed are inputs. Step times are measured at the end, all optimizers in turn in one
pass (`timing.json`; --time measures again): leave the machine alone for that. `--rerun` then trains each
optimizer's best learning rate again with as many steps as AdamW's time allows, its schedule fitted to them.

On 2 CPU cores a step takes about 0.35 s: 600 steps, 6 rates, 3 seeds and 8 optimizers are about 9 hours.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import tiny
from lm.commands import common
from lm.config import Config
from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.data.prepare import prepare
from lm.data.windows import EvalBatches
from lm.errors import LmError, UsageError, did_you_mean
from lm.resolve import fingerprint, with_vocabulary
from lm.storage import locked, make_folder, write_atomic

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"name": "adamw"},
    "muon": {"name": "muon"},
    "normuon": {"name": "muon", "muon_normalize": True},
    "muon_spectral": {"name": "muon", "muon_scale": "spectral"},
    "adafactor": {"name": "adafactor", "adafactor_momentum": True},
    "lion": {"name": "lion", "b2": 0.99},  # the paper's
    "soap": {"name": "soap"},
    "schedule_free": {"name": "schedule_free", "schedule": "constant"},
}
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CURVE_TOKENS = 16384  # validation tokens at each point of a curve; the last point also has all of eval.tokens
POINTS = 6  # of a curve
TIMED_STEPS = 10  # a multiple of soap_every: a refresh of the eigenbases in each


def race_config(optimizer: str, learning_rate: float, seed: int, num_steps: int) -> Config:
    """Return one run's config; its vocabulary is not filled in."""
    config = tiny.get_config()
    config.seed = seed
    config.optimizer.num_steps = num_steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, num_steps - 1)
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.muon_iterations = 5
    config.optimizer.adam_learning_rate = None
    for name, value in OPTIMIZERS[optimizer].items():
        config.optimizer[name] = value
    config.optimizer.learning_rate = learning_rate
    return common.resolve_here(config)


class Race:
    """Data, one compiled step per optimizer, and the results in a folder."""

    def __init__(self, folder: str):

        from lm.evaluate import LossEvaluator
        from lm.parallel.mesh import make_mesh, replicated

        self.folder = folder
        config = race_config("adamw", GRID[0], 0, 2)
        self._dataset = open_data(prepare(config.data, progress=common.data_progress(common.note)))
        self._mesh = make_mesh(config.parallel)
        self._scalars_sharding = replicated(self._mesh)
        self._built: dict[str, Any] = {}
        self._evaluate = LossEvaluator(self._step("adamw").local)
        validation = {"sequence_length": config.data.sequence_length, "batch_size": config.data.batch_size}
        self._curve, self._whole = (
            EvalBatches.of_split(self._dataset, "validation", max_tokens=tokens, **validation)
            for tokens in (CURVE_TOKENS, config.eval.tokens)
        )

    def _config(self, *run) -> Config:
        return with_vocabulary(race_config(*run), self._dataset.vocab_size)

    def _step(self, optimizer: str):
        """Return an optimizer's `BuiltStep`: what differs between its runs is an input of the step, or of no part of it."""
        from lm.train.step import build_step

        if optimizer not in self._built:
            self._built[optimizer] = build_step(self._config(optimizer, GRID[0], 0, 2), self._mesh)
        return self._built[optimizer]

    def _inputs(self, config: Config, loader: Loader, step: int):
        import jax

        from lm.parallel.mesh import place_batch
        from lm.train.step import step_scalars

        shape = (1, config.data.batch_size, config.data.sequence_length)
        batch = place_batch(self._mesh, shape, lambda rows, columns: loader.batch(step, rows, columns))
        return batch, jax.device_put(step_scalars(config, step), self._scalars_sharding)

    def _loader(self, config: Config) -> Loader:
        data = config.data
        return Loader(
            self._dataset,
            sequence_length=data.sequence_length,
            batch_size=data.batch_size,
            packing=data.packing,
            document_mask=data.document_mask,
            seed=config.seed,
        )

    def _path(self, optimizer: str, rate: float, seed: int, steps: int) -> str:
        return os.path.join(self.folder, f"{optimizer}-lr{rate:g}-seed{seed}-steps{steps}.json")

    def result(self, *run) -> dict | None:
        """Return a finished run's result, or None.

        Raises:
          UsageError: the file is of another config or other data.
        """
        path = self._path(*run)
        if not os.path.exists(path):
            return None
        with open(path) as file:
            found = json.load(file)
        if found["fingerprint"] != self._fingerprint(*run):
            raise UsageError(f'"{path}" is of another config or other data; choose another --out.')
        return found

    def _fingerprint(self, *run) -> str:
        return fingerprint(self._config(*run), manifest_hash=self._dataset.hash)

    def run(self, optimizer: str, rate: float, seed: int, steps: int, show) -> dict:
        """Train once and write the result; `show(step)` is called after each step."""
        import jax

        config = self._config(optimizer, rate, seed, steps)
        loader, state, step = self._loader(config), self._step(optimizer).init(None, seed), self._step(optimizer).step
        points = {max(1, round(steps * (i + 1) / POINTS)) for i in range(POINTS)}
        losses, pending, curve, start = [], [], [], time.monotonic()
        for number in range(steps):
            state, metrics = step(state, *self._inputs(config, loader, number))
            pending.append(metrics["bits_per_byte"])
            if number + 1 in points:
                losses += [float(loss) for loss in jax.device_get(pending)]
                pending.clear()
                if not np.isfinite(losses).all():
                    break
                curve.append([number + 1, self._evaluate(state.params, self._curve)["bits_per_byte"]])
            show(number + 1)
        finite = len(losses) == steps and bool(np.isfinite(losses).all())
        final = self._evaluate(state.params, self._whole)["bits_per_byte"] if finite else None
        result = {
            "optimizer": optimizer,
            "learning_rate": rate,
            "seed": seed,
            "steps": steps,
            "validation": final if final is not None and math.isfinite(final) else None,  # None: diverged
            "curve": curve,
            "seconds": time.monotonic() - start,
            "fingerprint": self._fingerprint(optimizer, rate, seed, steps),
        }
        write_atomic(self._path(optimizer, rate, seed, steps), json.dumps(result) + "\n")
        return result

    def time_steps(self, optimizers: Sequence[str], rounds: int) -> dict[str, float]:
        """Return the seconds of a step: of `rounds` visits in turn, `TIMED_STEPS` steps each, the median."""
        import jax

        config = self._config("adamw", GRID[0], 0, 2)
        batch, scalars = self._inputs(config, self._loader(config), 0)
        states, seconds = {}, {name: [] for name in optimizers}
        for number in range(rounds + 1):
            for name in optimizers:
                state = states.get(name) or self._step(name).init()
                step = self._step(name).step
                jax.block_until_ready(state)
                start = time.perf_counter()
                for _ in range(TIMED_STEPS):
                    state, _ = step(state, batch, scalars)
                jax.block_until_ready(state)
                if number:  # the first round compiles
                    seconds[name].append((time.perf_counter() - start) / TIMED_STEPS)
                states[name] = state
            common.note(f"timing: round {number} of {rounds}")
        return {name: float(np.median(values)) for name, values in seconds.items()}


class Progress:
    """One line on stderr per finished run, and on a terminal one that moves, with the time left for all runs."""

    def __init__(self, runs: Sequence[tuple]):
        self._steps_left = sum(run[-1] for run in runs)
        self._total, self._number = len(runs), 0
        self._start, self._steps_done = time.monotonic(), 0

    def begin(self, run: tuple):
        """Return `show(step)` of the next run."""
        self._number += 1
        before = self._steps_done

        def show(step: int) -> None:
            self._steps_done = before + step
            if sys.stderr.isatty():
                print(f"\r{self._line(run)}, step {step} of {run[-1]}, {self._left()} left   ", end="", file=sys.stderr)

        return show

    def end(self, run: tuple, result: dict, skipped: int) -> None:
        """Report a finished run; `skipped`: steps that a diverged run did not make."""
        self._steps_left -= skipped
        outcome = "diverged" if result["validation"] is None else f"{result['validation']:.4f} bits per byte"
        end = "\r" if sys.stderr.isatty() else ""
        print(f"{end}{self._line(run)}: {outcome}, {self._left()} left          ", file=sys.stderr, flush=True)

    def _line(self, run: tuple) -> str:
        optimizer, rate, seed, _ = run
        return f"[{self._number}/{self._total}] {optimizer}, learning rate {rate:g}, seed {seed}"

    def _left(self) -> str:
        if not self._steps_done:
            return "unknown time"
        seconds = (time.monotonic() - self._start) / self._steps_done * (self._steps_left - self._steps_done)
        return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def run_all(race: Race, runs: Sequence[tuple]) -> None:
    """Do the runs that have no result yet."""
    waiting = [run for run in runs if race.result(*run) is None]
    if len(waiting) < len(runs):
        common.note(f"{len(runs) - len(waiting)} of {len(runs)} runs are done")
    progress = Progress(waiting)
    for run in waiting:
        result = race.run(*run, progress.begin(run))
        done = result["curve"][-1][0] if result["curve"] else 0
        progress.end(run, result, 0 if result["validation"] is not None else run[-1] - done)


def mean_std(values: Sequence[float | None]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation; infinity if one diverged."""
    if any(value is None for value in values):
        return math.inf, math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def show_figure(value: tuple[float, float]) -> str:
    mean, std = value
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:.4f}" + (f" ± {std:.4f}" if math.isfinite(std) else "")


def read_curve(curve: Sequence[Sequence[float]], step: float) -> float | None:
    """Return the curve's value at a step, between its points by a straight line; None before its first point."""
    steps, values = zip(*curve, strict=True)
    return float(np.interp(step, steps, values)) if step >= steps[0] else None


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(race: Race, args, timing: Mapping[str, float]) -> str:
    """Return the grid and the race as markdown."""
    results = {
        run: race.result(*run) for run in itertools.product(args.optimizers, args.grid, args.seeds, [args.steps])
    }
    final = {
        (name, rate): mean_std([results[name, rate, seed, args.steps]["validation"] for seed in args.seeds])
        for name, rate in itertools.product(args.optimizers, args.grid)
    }
    best = {name: min(args.grid, key=lambda rate: final[name, rate][0]) for name in args.optimizers}
    grid = [[name, *(show_figure(final[name, rate]) for rate in args.grid)] for name in args.optimizers]

    rows = []
    for name in sorted(args.optimizers, key=lambda name: final[name, best[name]][0]):
        steps = equal_time_steps(timing, name, args.steps)
        curves = [results[name, best[name], seed, args.steps]["curve"] for seed in args.seeds]
        diverged = not math.isfinite(final[name, best[name]][0])
        read = [None if diverged else read_curve(curve, min(steps, args.steps)) for curve in curves]
        edge = " (edge of the grid)" if best[name] in (min(args.grid), max(args.grid)) else ""
        row = [
            name,
            f"{best[name]:g}{edge}",
            show_figure(final[name, best[name]]),
            f"{timing[name] * 1000:.0f} ms, {timing[name] / timing['adamw']:.2f}",
            f"{show_figure(mean_std(read))} (step {min(steps, args.steps)})",
        ]
        if args.rerun:
            again = [race.result(name, best[name], seed, steps) for seed in args.seeds]
            row.append(f"{show_figure(mean_std([r['validation'] for r in again]))} ({steps} steps)")
        rows.append(row)
    headers = [
        "optimizer",
        "best learning rate",
        f"bits per byte at {args.steps} steps",
        "step time, ratio to adamw",
        "curve at adamw's time",
        *(["trained for adamw's time"] if args.rerun else []),
    ]
    seeds = f"{len(args.seeds)} seeds, mean ± standard deviation; validation"
    return (
        f"Validation bits per byte by learning rate, {args.steps} steps, {seeds}:\n\n"
        f"{table(['optimizer', *(f'{rate:g}' for rate in args.grid)], grid)}\n\n"
        f"At each one's best rate (the curve is read on {CURVE_TOKENS:,} validation tokens):\n\n{table(headers, rows)}\n"
    )


def equal_time_steps(timing: Mapping[str, float], name: str, steps: int) -> int:
    """Return how many steps an optimizer makes in the time that AdamW takes for `steps`."""
    return max(2, round(steps * timing["adamw"] / timing[name]))


def measured_times(race: Race, args) -> dict[str, float]:
    """Return step times, from the folder if it has them for all optimizers."""
    path, timing = os.path.join(race.folder, "timing.json"), {}
    if os.path.exists(path) and not args.time:
        with open(path) as file:
            timing = json.load(file)
    wanted = ["adamw", *(name for name in args.optimizers if name != "adamw")]
    if not set(wanted) <= set(timing):
        timing = race.time_steps(wanted, args.rounds)
        write_atomic(path, json.dumps(timing) + "\n")
    return timing


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="results: one file per run")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--grid", type=float, nargs="+", default=list(GRID), metavar="RATE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), metavar="NAME", help=", ".join(OPTIMIZERS))
    parser.add_argument("--rounds", type=int, default=5, help=f"of the timing, {TIMED_STEPS} steps each")
    parser.add_argument("--time", action="store_true", help="measure step times again")
    parser.add_argument("--rerun", action="store_true", help="train the best rates again for AdamW's time")
    args = parser.parse_args(arguments)
    for name in args.optimizers:
        if name not in OPTIMIZERS:
            raise UsageError(
                f"--optimizers {name}: expected some of {', '.join(OPTIMIZERS)}.{did_you_mean(name, OPTIMIZERS)}"
            )
    if args.steps < 2 or args.rounds < 1 or not all(rate > 0 for rate in args.grid):
        raise UsageError("--steps: expected 2 or more; --rounds: 1 or more; --grid: numbers above 0.")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the tables. Returns the exit code."""
    try:
        args = parse(arguments)
        make_folder(args.out)
        with locked(args.out):
            race = Race(args.out)
            # Seeds outermost: a race that is stopped early has whole grids.
            grid = itertools.product(args.seeds, args.optimizers, args.grid)
            run_all(race, [(name, rate, seed, args.steps) for seed, name, rate in grid])
            timing = measured_times(race, args)
            if args.rerun:
                results = lambda name, rate: [race.result(name, rate, seed, args.steps) for seed in args.seeds]  # noqa: E731
                score = lambda name, rate: mean_std([r["validation"] for r in results(name, rate)])[0]  # noqa: E731
                best = {name: min(args.grid, key=lambda rate, name=name: score(name, rate)) for name in args.optimizers}
                again = {name: equal_time_steps(timing, name, args.steps) for name in args.optimizers}
                run_all(race, [(name, best[name], s, again[name]) for s in args.seeds for name in args.optimizers])
            print(report(race, args, timing))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except LmError as error:
        print(f"optimizers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
