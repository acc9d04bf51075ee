"""Does a scaling law fitted to small runs predict a larger one? Four widths by four numbers of tokens, one run held back.

    python -m experiments.benchmarks.scaling_law --out runs/scaling

trains the grid on the Python standard library, and one run that is larger than all of it in parameters and in tokens;
writes them as a sweep's results (`lm fit-scaling` reads the folder); fits the law to the grid alone and says how well it
predicts the held-back run. Every run sees each token at most once, its learning rate decays to 0 within its own tokens,
and muP carries the learning rate that was tuned at width 64 to the others: so that a run differs from another by
its size and its tokens, not by how well it was tuned. Width alone grows, at 4 layers and heads of 16.

One result file per run: stop it at any time, the same command goes on. Each width is compiled once.

17 runs trained for 27 minutes on 2 CPU cores shared with other jobs. The law, fitted to 16 of them, predicts 3.137 nats per token for the
held-back run (2.2 times the parameters and twice the tokens of the largest), which has 3.118: +0.6 %. Its 95 %
interval is ±2.1 %. With twice the batch, and so half the steps, it was ±4.2 % for 36 runs: the shortest have 128 steps then, and
lie off the law.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import mup_base
from lm.commands import common
from lm.commands.environment import describe_environment
from lm.config import Config, to_dict
from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.data.prepare import prepare
from lm.data.windows import EvalBatches
from lm.errors import LmError
from lm.resolve import fingerprint, with_vocabulary
from lm.storage import exists, join, locked, make_folder, write_atomic

WIDTHS = (48, 64, 96, 128)
TOKENS = (131_072, 212_992, 327_680, 524_288)  # of a run
HELD_BACK = (192, 1_048_576)  # width and tokens
BASELINE = "64x327680"


def run_config(width: int, tokens: int, seed: int, learning_rate: float) -> Config:
    """Return one run's config; its vocabulary is not filled in."""
    config = mup_base.get_config()
    config.seed = seed
    config.data.batch_size = 4  # with 8 the shortest runs are short of steps, and lie off the law
    config.data.tokenizer_vocab_size = 1024  # few, or the head outweighs the blocks of the small widths
    config.model.d_model = width
    config.model.num_heads = width // 16
    config.model.d_ff = width * 11 // 4
    config.optimizer.learning_rate = learning_rate
    config.optimizer.num_steps = tokens // (config.data.batch_size * config.data.sequence_length)
    config.optimizer.warmup_steps = max(1, config.optimizer.num_steps // 10)
    config.optimizer.schedule = "linear"
    return common.resolve_here(config)


class Grid:
    """Data, one compiled step per width, and the results in a sweep's folder."""

    def __init__(self, folder: str, learning_rate: float):
        from lm.parallel.mesh import make_mesh, replicated

        self.folder, self._learning_rate = folder, learning_rate
        config = run_config(WIDTHS[0], TOKENS[0], 0, learning_rate)
        self._dataset = open_data(prepare(config.data, progress=common.data_progress(common.note)))
        self._mesh = make_mesh(config.parallel)
        self._scalars_sharding = replicated(self._mesh)
        self._compiled: tuple[int, Any, Any] | None = None  # of the newest width: step and evaluation
        self._validation = EvalBatches.of_split(
            self._dataset,
            "validation",
            max_tokens=2 * config.eval.tokens,
            sequence_length=config.data.sequence_length,
            batch_size=config.data.batch_size,
        )
        self._git_commit = describe_environment()["git_commit"]

    def config(self, width: int, tokens: int, seed: int) -> Config:
        return with_vocabulary(run_config(width, tokens, seed, self._learning_rate), self._dataset.vocab_size)

    def id(self, *run: int) -> str:
        return fingerprint(self.config(*run), manifest_hash=self._dataset.hash)[:12]

    def path(self, *run: int) -> str:
        return join(self.folder, "results", f"{self.id(*run)}.json")

    def _programs(self, config: Config):
        """Return the step and the evaluation for a config's width: tokens and seed are inputs, or of no part of them."""
        from lm.evaluate import LossEvaluator
        from lm.train.step import build_step

        width = config.model.d_model
        if self._compiled is None or self._compiled[0] != width:
            built = build_step(config, self._mesh)
            self._compiled = width, built, LossEvaluator(built.local)
        return self._compiled[1:]

    def run(self, width: int, tokens: int, seed: int) -> dict[str, Any]:
        """Train once and write the result."""
        import jax

        from lm.model.flops import parameter_counts, train_flops_per_token
        from lm.parallel.mesh import place_batch
        from lm.train.step import step_scalars

        config = self.config(width, tokens, seed)
        data, steps = config.data, config.optimizer.num_steps
        loader = Loader(
            self._dataset,
            sequence_length=data.sequence_length,
            batch_size=data.batch_size,
            packing=data.packing,
            document_mask=data.document_mask,
            seed=seed,
        )
        built, evaluate = self._programs(config)
        state, shape, start = built.init(None, seed), (1, data.batch_size, data.sequence_length), time.monotonic()
        show = common.progress_line(self.name(width, tokens), "steps")
        seconds = []
        for step in range(steps):
            begin = time.monotonic()
            batch = place_batch(self._mesh, shape, lambda rows, columns, step=step: loader.batch(step, rows, columns))
            scalars = jax.device_put(step_scalars(config, step), self._scalars_sharding)
            state, metrics = built.step(state, batch, scalars)
            jax.block_until_ready(metrics)
            seconds.append(time.monotonic() - begin)
            show(step + 1, steps)
        scores = evaluate(state.params, self._validation)
        finite = bool(np.isfinite(scores["loss"]))
        final = {"step": steps, **scores} if finite else None
        result = {
            "id": self.id(width, tokens, seed),
            "variant": self.name(width, tokens),
            "overrides": self.overrides(width, tokens),
            "seed": seed,
            "status": "done" if finite else "failed",
            "failure": None if finite else "the loss is not finite",
            "final": final,
            "best": final,
            "steps": steps,
            "tokens": tokens,
            "flops": tokens * train_flops_per_token(config.model, data.sequence_length),
            "num_parameters": parameter_counts(config.model)["total"],
            "tokens_per_second": data.batch_size * data.sequence_length / statistics.median(seconds),
            "mfu": None,
            "peak_memory_bytes": None,
            "seconds": time.monotonic() - start,
            "git_commit": self._git_commit,
            "config": to_dict(config),
            "folder": f"runs/{self.id(width, tokens, seed)}",
        }
        write_atomic(self.path(width, tokens, seed), common.result_json(result) + "\n")
        return result

    def name(self, width: int, tokens: int) -> str:
        return f"{width}x{tokens}"

    def overrides(self, width: int, tokens: int) -> dict[str, Any]:
        config = self.config(width, tokens, 0)
        return {
            "model.d_model": width,
            "model.num_heads": config.model.num_heads,
            "model.d_ff": config.model.d_ff,
            "optimizer.num_steps": config.optimizer.num_steps,
            "optimizer.warmup_steps": config.optimizer.warmup_steps,
        }

    def write_plan(self, runs: Sequence[tuple[int, int, int]]) -> None:
        """Write `sweep.json`, what readers of a sweep's folder begin with."""
        variants = dict.fromkeys((width, tokens) for width, tokens, _ in runs)
        plan = {
            "name": "scaling_law",
            "description": "Widths by numbers of tokens, and one larger run.",
            "metric": "loss",
            "match": "tokens",
            "baseline": BASELINE,
            "config_file": "experiments/mup_base.py",
            "seeds": sorted({seed for *_, seed in runs}),
            "base": to_dict(self.config(*runs[0])),
            "variants": [{"name": self.name(*v), "overrides": self.overrides(*v)} for v in variants],
            "runs": [
                {"id": self.id(*run), "variant": self.name(*run[:2]), "seed": run[2], "group": str(run[0])}
                for run in runs
            ],
        }
        write_atomic(join(self.folder, "sweep.json"), common.result_json(plan) + "\n")


def all_runs(seeds: Sequence[int], widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (width, tokens, seed) of all runs, a width's together; the one that is held back comes last."""
    return [
        *((width, tokens, seed) for width in widths for seed in seeds for tokens in TOKENS),
        *((*HELD_BACK, seed) for seed in seeds[:1]),
    ]


def train_missing(grid: Grid, runs: Sequence[tuple[int, int, int]]) -> None:
    """Do the runs that have no result yet, a line on stderr for each."""
    missing = [run for run in runs if not exists(grid.path(*run))]
    if len(missing) < len(runs):
        common.note(f"{len(runs) - len(missing)} of {len(runs)} runs are done")
    for number, run in enumerate(missing):
        result = grid.run(*run)
        outcome = result["failure"] or f"{result['final']['loss']:.4f} nats per token"
        common.note(
            f"[{number + 1}/{len(missing)}] {result['variant']}, seed {run[2]}: {outcome}, {result['seconds']:.0f} s"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="the sweep's folder: one result file per run")
    parser.add_argument(
        "--learning-rate", type=float, default=0.018, metavar="RATE", help="at width 64 (default 0.018)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), metavar="D", help="multiples of 16")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, then fit and predict. Returns the exit code."""
    from lm.__main__ import main as lm

    try:
        args = parse(arguments)
        make_folder(args.out)
        with locked(args.out):
            make_folder(join(args.out, "results"))
            grid, runs = Grid(args.out, args.learning_rate), all_runs(args.seeds, args.widths)
            grid.write_plan(runs)
            train_missing(grid, runs)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except LmError as error:
        print(f"scaling_law: {error}", file=sys.stderr)
        return error.exit_code
    plot = join(args.out, "scaling_law.png")
    return lm(["fit-scaling", args.out, "--hold-back", grid.name(*HELD_BACK), "--out", plot])


if __name__ == "__main__":
    sys.exit(main())
