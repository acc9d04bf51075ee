"""Does the best learning rate stay when the model gets wider? Under muP and under standard parametrization.

    python -m experiments.benchmarks.mup_transfer --out runs/mup_transfer

The setting is experiments/mup_base.py's with 2 layers, 4 rows of 64 tokens and 100 steps: widths 64 to 512, rates a
factor of 2 apart, the same batches for all. Prints the validation losses as tables, by how many grid steps the best
rate moves, and draws the curves (`mup_transfer_adamw.png`). Standard parametrization is the same config without a
`mup_base_width` and with the initializer `fan_in`.

One result file per run: stop it at any time, the same command goes on. One compilation per width and parametrization:
rate and seed are inputs of the step.

On 2 CPU cores shared with other jobs (load 7 to 14) 56 runs of AdamW took 35 minutes: from width 64 to 512 the best rate went from
2^-5 to 2^-6 under muP and from 2^-5 to 2^-9 under standard parametrization, where the best rate of width 64 costs 0.94 nats at
width 512 (0.04 under muP).
"""

import argparse
import dataclasses
import json
import math
import time

from experiments import mup_base
from lm.commands import common
from lm.config import Config
from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.data.prepare import prepare
from lm.data.windows import EvalBatches
from lm.resolve import fingerprint, with_vocabulary
from lm.storage import exists, join, make_folder, read_text, write_atomic
from lm.sweep.coord_check import parametrizations, widened
from lm.sweep.transfer import Transfer

WIDTHS = (64, 128, 256, 512)
RATES = tuple(2.0**power for power in range(-10, -3))
VALIDATION_TOKENS = 16384


def configs(optimizer: str, steps: int) -> dict[str, Config]:
    """Return the config of the smallest width per parametrization; the vocabulary is not filled in."""
    config = mup_base.get_config()
    config.model.num_layers = 2
    config.data.batch_size = 4
    config.data.sequence_length = 64
    config.optimizer.name = optimizer
    config.optimizer.num_steps = steps
    config.optimizer.warmup_steps = steps // 10
    return parametrizations(common.resolve_here(config), WIDTHS[0])


class Runs:
    """Data, one compiled step per width and parametrization, and the results in a folder."""

    def __init__(self, folder: str, config: Config):
        from lm.parallel.mesh import make_mesh

        self.folder = folder
        self._dataset = open_data(prepare(config.data, progress=common.data_progress(common.note)))
        self._mesh = make_mesh(config.parallel)
        self._validation = EvalBatches.of_split(
            self._dataset,
            "validation",
            sequence_length=config.data.sequence_length,
            batch_size=config.data.batch_size,
            max_tokens=VALIDATION_TOKENS,
        )

    def of_width(self, config: Config, width: int, rates: list[float], seeds: int, show) -> list[tuple[float, float]]:
        """Return (rate, validation loss; None: diverged) of each run of a width; what is in the folder isn't run again."""
        from lm.evaluate import LossEvaluator
        from lm.train.step import build_step

        config, built, evaluate, out = with_vocabulary(widened(config, width), self._dataset.vocab_size), None, None, []
        for seed in range(seeds):
            for rate in rates:
                optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
                own = dataclasses.replace(config, optimizer=optimizer, seed=seed)
                identity = fingerprint(own, manifest_hash=self._dataset.hash)
                path = join(self.folder, f"{identity[:16]}.json")
                if not exists(path):
                    if built is None:
                        built = build_step(own, self._mesh)
                        evaluate = LossEvaluator(built.local)
                    start = time.monotonic()
                    loss = self._train(own, built, evaluate)
                    result = {
                        "width": width,
                        "learning_rate": rate,
                        "seed": seed,
                        "loss": loss,
                        "fingerprint": identity,
                    }
                    result |= {"mup_base_width": own.model.mup_base_width, "optimizer": optimizer.name}
                    write_atomic(path, json.dumps(result | {"seconds": time.monotonic() - start}) + "\n")
                out.append((rate, json.loads(read_text(path))["loss"]))
                show()
        return out

    def _train(self, config: Config, built, evaluate) -> float | None:
        import jax

        from lm.parallel.mesh import place_batch, replicated
        from lm.train.step import step_scalars

        data = config.data
        loader = Loader(
            self._dataset, sequence_length=data.sequence_length, batch_size=data.batch_size, seed=config.seed
        )
        state, shape = built.init(None, config.seed), (1, data.batch_size, data.sequence_length)
        for step in range(config.optimizer.num_steps):
            part = lambda rows, columns, step=step: loader.batch(step, rows, columns)  # noqa: E731
            hparams = jax.device_put(step_scalars(config, step), replicated(self._mesh))
            state, _ = built.step(state, place_batch(self._mesh, shape, part), hparams)
        loss = evaluate(state.params, self._validation)["loss"]
        return loss if math.isfinite(loss) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="results and the plot")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), metavar="D,D,…")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), metavar="R,R,…")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    widths = [int(width) for width in args.widths.split(",")]
    rates = [float(rate) for rate in args.rates.split(",")]
    make_folder(args.out)
    found = configs(args.optimizer, args.steps)
    runs = Runs(args.out, found["muP"])
    total, done = len(found) * len(widths) * len(rates) * args.seeds, 0
    line = common.progress_line("learning rates", "runs", tells_end=True)

    def show() -> None:
        nonlocal done
        done += 1
        line(done, total)

    losses: dict[str, list] = {label: [] for label in found}
    for width in widths:
        for label, config in found.items():
            losses[label] += [(width, *run) for run in runs.of_width(config, width, rates, args.seeds, show)]
    transfers = [Transfer.of_runs(label, of) for label, of in losses.items()]
    for transfer in transfers:
        print(f"{transfer.summary}\n{transfer.table()}")
        print(f"the best rate of width {widths[0]} costs {transfer.penalty:.4f} in loss at width {widths[-1]}\n")

    from lm.report.coord_check import draw_transfer

    path = join(args.out, f"mup_transfer_{args.optimizer}.png")
    draw_transfer(
        transfers, path, title=f"{args.optimizer}, {args.steps} steps: validation loss by learning rate and width"
    )
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
