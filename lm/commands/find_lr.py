"""`lm find-lr`: a learning rate for a config, from a range test and a few short runs."""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from lm.checkpoint.run_folder import read_run_info
from lm.commands import common
from lm.config import Config
from lm.errors import LmError, UsageError
from lm.resolve import fingerprint, with_vocabulary
from lm.storage import join, make_folder, write_atomic

HELP = "A learning-rate range test and a short search around what it suggests: a suggestion, JSON and a plot."

FEWEST_STEPS = 20  # of a ramp


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with a get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where find_lr.json and find_lr.png go")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="start from this run's newest checkpoint, which stays as it is"
    )
    parser.add_argument("--low", type=float, default=1e-5, help="first learning rate of the ramp (default: 1e-5)")
    parser.add_argument("--high", type=float, default=1.0, help="last learning rate of the ramp (default: 1)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of the ramp (default: 100)")
    parser.add_argument(
        "--search", type=int, default=5, metavar="K", help="rates of the short search; 0: the ramp alone (default: 5)"
    )
    parser.add_argument(
        "--search-steps",
        type=int,
        metavar="N",
        help="of each short run (default: an eighth of the config's, 20 or more)",
    )
    parser.add_argument(
        "--vmap", action="store_true", help="train the K rates side by side in one program, not in turn"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.epilog = (
        "example:\n"
        "  lm find-lr --config experiments/tiny.py --workdir runs/find_lr\n\n"
        "The ramp's rates are absolute, so that a wrong rate in the config does not hide the good ones; Muon's\n"
        "adam_learning_rate keeps its ratio to learning_rate. The short runs begin at the rate of the ramp's steepest fall\n"
        "and go up by factors of 2; where the answer lies at their edge, up to three more follow. Suggested is the lowest\n"
        "rate within 1 % of the best. Warmup and schedule are ignored in the ramp and compressed into the short runs;\n"
        "batches have one shape, that of the first step."
    )


def run(args: argparse.Namespace) -> None:
    _check(args)
    began = time.monotonic()
    config = common.resolve_here(common.load_config(args.config, args.overrides))
    if args.checkpoint:
        read_run_info(args.checkpoint)
    make_folder(args.workdir)

    from lm.report.lr_finder import draw
    from lm.sweep import lr_finder

    # 1. Data, the step, and the state that the ramp and each short run begin with.
    opened = open_training(config, args.checkpoint)
    config = opened.config
    if args.vmap and opened.built.mesh.size > 1:
        raise UsageError(f"--vmap is for one device, and there are {opened.built.mesh.size}; leave it out.")

    # 2. The ramp.
    ramp = lr_finder.range_test(
        opened.built,
        opened.batch,
        config,
        low=args.low,
        high=args.high,
        num_steps=args.steps,
        start=opened.start,
        progress=common.progress_line("range test", "steps"),
    )
    suggestions = ramp.suggestions()
    if not suggestions:
        raise LmError(
            f"the loss never fell between the learning rates {args.low:g} and {args.high:g}; widen --low and --high, "
            "or raise --steps."
        )
    if ramp.is_still_falling:
        common.note(f"the loss still falls at the end of the ramp: --high above {args.high:g} may find more")

    # 3. Short runs from its steepest fall upwards.
    search, rule = None, lr_finder.RAMP_RULE
    if args.search:
        search = lr_finder.search_from(
            opened.built,
            opened.batch,
            config,
            suggestions["steepest"],
            num_rates=args.search,
            num_steps=args.search_steps,
            start=opened.start,
            together=args.vmap,
            progress=common.progress_line("short runs", "steps"),
        )
        if search.suggestion() is not None:
            rule, suggestions = "search", {**suggestions, "search": search.suggestion()}
    opened.loader.check()

    # 4. What came of it.
    suggested = lr_finder.at_rate(config, suggestions[rule]).optimizer
    names = "learning_rate", *(("adam_learning_rate",) if suggested.adam_learning_rate else ())
    overrides = {f"optimizer.{name}": getattr(suggested, name) for name in names}
    result = {
        "config_file": args.config,
        "fingerprint": opened.fingerprint,
        "checkpoint": args.checkpoint,
        "rule": rule,
        "suggestion": suggestions[rule],
        "overrides": overrides,
        "suggestions": suggestions,
        "range_test": ramp.record(),
        "search": search and search.record(),
        "steps": len(ramp.losses) + (search.num_steps * len(search.rates) if search else 0),
        "seconds": time.monotonic() - began,
    }
    picture = join(args.workdir, "find_lr.png")
    write_atomic(join(args.workdir, "find_lr.json"), common.result_json(result, indent=2) + "\n")
    draw(result, picture, title=f"learning rate for {args.config}")
    others = ", ".join(f"{name} {rate:.2g}" for name, rate in suggestions.items() if name != rule)
    setting = " ".join(f"--config.{path}={value:.2g}" for path, value in overrides.items())
    line = f"{setting} ({rule}; {others}): {picture}"
    print(common.result_json(result) if args.json else line)


def _check(args: argparse.Namespace) -> None:
    common.require_positive(args, "steps", "search_steps")
    if not 0 < args.low < args.high < math.inf:
        raise UsageError(
            f"--low {args.low:g} --high {args.high:g}: expected two positive numbers, the lower one first."
        )
    if args.steps < FEWEST_STEPS:
        raise UsageError(f"--steps {args.steps}: a curve needs {FEWEST_STEPS} or more.")
    if args.vmap and not args.search:
        raise UsageError("--vmap trains the rates of --search side by side, and there are none.")
    if args.search < 0:
        raise UsageError(f"--search {args.search}: expected 0 (the ramp alone) or more rates.")


@dataclasses.dataclass(frozen=True)
class Opened:
    """What training a config takes: its step, its batches and the state it begins with."""

    config: Config  # with `vocab_size`
    built: Any  # BuiltStep
    dataset: Any
    loader: Any  # of one stage: the batch shape of the step that it begins with
    first: int  # that step
    start: Callable[[], Any]  # the state to begin with, a new copy each time: the step donates it
    fingerprint: str

    def batch(self, step: int) -> Any:
        """Return the placed batch of a step, counted from where the state is."""
        from lm.parallel.mesh import place_batch

        micro, stage = self.config.optimizer.accumulation_steps, self.loader.stages.at(0)
        shape = (micro, stage.batch_size // micro, stage.sequence_length)
        step += self.first
        return place_batch(self.built.mesh, shape, lambda rows, columns: self.loader.batch(step, rows, columns))


def open_training(config: Config, checkpoint: str | None = None) -> Opened:
    """Open the data of a config and build its step on the devices of this machine.

    Args:
      config: resolved.
      checkpoint: a run's folder, whose newest checkpoint is the state to begin with; None: what the config says.

    Raises:
      UsageError: there is no such checkpoint.
      ConfigError: it is of another model or optimizer.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lm import hosts
    from lm.checkpoint.store import Checkpoints
    from lm.commands import training
    from lm.data.dataset import open_data
    from lm.data.loader import Loader
    from lm.data.prepare import prepare
    from lm.data.stages import Stages
    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh
    from lm.plan.gate import check_fits
    from lm.train.loop import STATE_ITEMS
    from lm.train.step import TrainState, build_step

    init_from = training.init_fingerprint(config, "")
    dataset = open_data(prepare(config.data, progress=common.data_progress(common.note)), config.data.verify)
    training.check_tokenizer(dataclasses.replace(config, init_from=checkpoint or config.init_from), dataset)
    config = with_vocabulary(config, dataset.vocab_size)
    check_fits(config, detect())
    built = build_step(config, make_mesh(config.parallel))

    first, initial = 0, training.initial_params(config, built)
    start = built.init if initial is None else lambda: built.init(initial())
    if checkpoint:
        source = Checkpoints(join(checkpoint, "checkpoints"), verify=config.checkpoint.verify, warn=common.note)
        restored = source.restore({name: getattr(built.state, name) for name in STATE_ITEMS})
        first, kept = restored.step, dict(restored.items)

        def start():
            step = hosts.replicate(built.mesh, np.int32(first))
            return TrainState(step=step, **jax.tree.map(jnp.copy, kept))

    stage = Stages(config.data.schedule, config.data.sequence_length).at(first)
    loader = Loader.of_config(config, dataset, stages=((0, stage.batch_size, stage.sequence_length),))
    identity = fingerprint(config, manifest_hash=dataset.hash, init_from=init_from)
    return Opened(config, built, dataset, loader, first, start, identity)
