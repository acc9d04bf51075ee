"""Does `lm find-lr` find it: its suggestion beside a grid of 12 learning rates, and what both cost.

    python -m experiments.benchmarks.lr_finder --config experiments/tiny.py --out runs/lr_finder/tiny
    python -m experiments.benchmarks.lr_finder --config experiments/shakespeare.py --out runs/lr_finder/shakespeare \\
        --config.data.path=input.txt
    python -m experiments.benchmarks.lr_finder --config experiments/tiny.py --out runs/lr_finder/tiny --vmap

The grid: 12 rates, a factor of 2 apart, around the config's own, each trained to the end of its schedule and scored on
the validation split (the test split where there is none), all in one program. Then `lm find-lr` in a process of its
own, and the rate that each of its rules suggests trained and scored in the same way. Costs are compared in optimizer
steps, which no other load on the machine changes, and in seconds: those of the finder are of its whole process, those
of the grid of its steps alone. One result file per run: stop it at any time, the same command goes on.

`--vmap`: seconds of the short search's runs side by side in one program, beside the same runs in turn, compiled before,
at the config's size and at a much smaller one.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from lm.__main__ import split_overrides
from lm.commands import common, find_lr
from lm.storage import exists, join, make_folder, read_text, write_atomic

EXPONENTS = (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6)  # of 2, from the config's rate outwards
SMALL = (  # "a much smaller size"
    ("model.num_layers", "2"),
    ("model.d_model", "32"),
    ("model.num_heads", "2"),
    ("model.num_kv_heads", "1"),
    ("data.sequence_length", "32"),
    ("data.batch_size", "4"),
    ("data.tokenizer_vocab_size", "512"),
)
SIDE_BY_SIDE = 8  # rates of the vmap comparison


class Runs:
    """Whole runs of one config at different learning rates, in one program, each result in a file."""

    def __init__(self, folder: str, config: Any):
        from lm.data.windows import EvalBatches
        from lm.evaluate import LossEvaluator

        self.folder, self.opened = folder, find_lr.open_training(config)
        self.config = config = self.opened.config
        self.split = "validation" if "validation" in self.opened.dataset.splits else "test"
        self._evaluator = LossEvaluator(self.opened.built.local)
        self._batches = EvalBatches.of_split(
            self.opened.dataset,
            self.split,
            sequence_length=config.data.sequence_length,
            batch_size=config.data.batch_size,
            max_tokens=config.eval.tokens,
        )
        make_folder(folder)

    def result(self, rate: float) -> dict[str, float]:
        """Return `learning_rate`, `loss`, `bits_per_byte`, `seconds` (of the steps) of a run, trained now if it is new."""
        path = join(self.folder, f"run_{self.config.optimizer.num_steps}_{rate:.4g}.json")
        if not exists(path):
            state, seconds = self._train(rate)
            figures = self._evaluator(self.opened.built.evaluation_params(state), self._batches)
            record = {"learning_rate": rate, "seconds": seconds, **figures}
            common.note(f"learning rate {rate:.3g}: {figures['bits_per_byte']:.4f} bits per byte, {seconds:.0f} s")
            write_atomic(path, common.result_json(record) + "\n")
        return json.loads(read_text(path))

    def _train(self, rate: float) -> tuple[Any, float]:
        from lm import hosts
        from lm.sweep.lr_finder import at_rate
        from lm.train.step import step_scalars

        built, config, began = self.opened.built, at_rate(self.config, rate), None
        show = common.progress_line(f"learning rate {rate:.3g}", "steps")
        state = built.init()
        for step in range(config.optimizer.num_steps):
            scalars = hosts.replicate(built.mesh, step_scalars(config, step))
            state, metrics = built.step(state, self.opened.batch(step), scalars)
            metrics["loss"].block_until_ready()
            began = began or time.monotonic()  # after the first step: it may have been compiled
            show(step + 1, config.optimizer.num_steps)
        return state, time.monotonic() - began


def compare(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Run grid, finder and the finder's suggestions; print the tables."""
    runs = Runs(args.out, common.resolve_here(common.load_config(args.config, overrides)))
    num_steps, own = runs.config.optimizer.num_steps, runs.config.optimizer.learning_rate
    grid = [runs.result(own * 2.0**exponent) for exponent in EXPONENTS]
    best = min((r for r in grid if r["bits_per_byte"] is not None), key=lambda r: r["bits_per_byte"])

    path = join(args.out, f"finder_{num_steps}.json")
    if not exists(path):
        command = [sys.executable, "-m", "lm", "find-lr", "--config", args.config, "--workdir", args.out, "--json"]
        began = time.monotonic()
        out = subprocess.run(
            [*command, *(f"--config.{n}={v}" for n, v in overrides)], stdout=subprocess.PIPE, check=True
        )
        found = json.loads(out.stdout)
        write_atomic(path, json.dumps({**found, "process_seconds": time.monotonic() - began}))
    found = json.loads(read_text(path))

    print(f"{args.config}, {num_steps} steps a run, {runs.split} bits per byte")
    print(f"  {'learning rate':<24}{'bits per byte':>14}{'over the best':>15}")

    def row(name: str, result: dict[str, float]) -> None:
        bits = float("nan") if result["bits_per_byte"] is None else result["bits_per_byte"]  # diverged
        print(f"  {name:<24}{bits:>14.4f}{bits / best['bits_per_byte'] - 1:>15.2%}")

    for result in sorted(grid, key=lambda r: r["learning_rate"]):
        row(f"{result['learning_rate']:.4g}", result)
    for rule, rate in found["suggestions"].items():
        row(f"{rule}: {rate:.3g}{' *' if rule == found['rule'] else ''}", runs.result(rate))
    steps, seconds = (
        found["steps"] / (num_steps * len(grid)),
        found["process_seconds"] / sum(r["seconds"] for r in grid),
    )
    print(
        f"  * suggested by lm find-lr, after {found['steps']} steps: {steps:.3f} of the grid's, {seconds:.3f} of its seconds"
    )


def compare_vmap(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Print the time of runs side by side in one program over that of the same runs in turn."""
    from lm.sweep.lr_finder import short_search

    for name, changes in ((args.config, ()), ("much smaller", SMALL)):
        opened = find_lr.open_training(common.resolve_here(common.load_config(args.config, [*overrides, *changes])))
        rate = opened.config.optimizer.learning_rate
        rates = [rate * 2.0**exponent for exponent in EXPONENTS[:SIDE_BY_SIDE]]

        def timed(together: bool, steps: int, opened=opened, rates=rates) -> float:
            began = time.monotonic()
            short_search(opened.built, opened.batch, opened.config, rates, num_steps=steps, together=together)
            return time.monotonic() - began

        for together in (False, True):
            timed(together, 2)  # compiles
        times = [(timed(False, args.steps), timed(True, args.steps)) for _ in range(args.repeats)]
        in_turn, together = (min(column) for column in zip(*times, strict=True))
        each = 1e3 / (args.steps * len(rates))
        print(
            f"{name}: {len(rates)} rates, {args.steps} steps: in turn {in_turn * each:.1f} ms a step, side by side "
            f"{together * each:.1f} ms: {in_turn / together:.2f} times as fast"
        )


def main() -> None:
    rest, overrides = split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--out", required=True, metavar="DIR", help="results are kept here")
    parser.add_argument("--vmap", action="store_true", help="compare runs side by side with runs in turn instead")
    parser.add_argument("--steps", type=int, default=10, help="of each run of --vmap")
    parser.add_argument("--repeats", type=int, default=3, help="of --vmap, in turns; the fastest counts")
    args = parser.parse_args(rest)
    (compare_vmap if args.vmap else compare)(args, overrides)


if __name__ == "__main__":
    main()
