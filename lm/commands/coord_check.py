"""`lm coord-check`: do activations keep their size as the model gets wider, under muP and without it?"""

import argparse
import dataclasses
import re
import sys
from typing import Any

from lm.commands import common
from lm.config import OPTIMIZERS, Config
from lm.errors import LmError, UsageError, did_you_mean
from lm.storage import join, make_folder

HELP = "muP: do activations, and what a few steps change of them, keep their size as the model gets wider?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with a get_config()")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the plots go, one PNG per optimizer")
    parser.add_argument(
        "--widths", default="64,128,256,512", metavar="D,D,…", help="values of d_model (default: 64,128,256,512)"
    )
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="optimizer steps, all on one batch (5)")
    parser.add_argument("--tokens", type=int, metavar="N", help="of the batch (default: the smallest width)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="initializations and batches (3)")
    parser.add_argument(
        "--optimizer", metavar="NAME,…", help="check these in turn, like adamw,muon (default: the config's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "example:\n"
        "  lm coord-check --config experiments/mup_base.py --optimizer adamw,muon --out runs/coord_check\n\n"
        "Heads grow in number at the same width, key/value heads and d_ff in proportion. The rate is the config's peak\n"
        "from the first step on, in f32. muP is as configured (without mup_base_width: that of the first width, and the\n"
        "initializer mup); standard parametrization is the same config without it. Judged are the slopes of log2 RMS\n"
        "over log2 width after the last step, of every activation and of its change: muP must have all within 0.1 of 0.\n"
        "The whole logits are not judged, because what a random readout adds to them falls with the width; what the\n"
        "readout has learned is. The batch has no more tokens than the smallest model has dimensions: with more, that\n"
        "model's updates serve several tokens with one direction, and changes grow until the width has caught up.\n"
        "Exit code 1: muP failed."
    )


def run(args: argparse.Namespace) -> None:
    common.require_positive(args, "steps", "seeds", "tokens")
    widths = _widths(args.widths)
    config = common.resolve_here(common.load_config(args.config, args.overrides))
    optimizers = _optimizers(args.optimizer) or [config.optimizer.name]

    from lm.report.coord_check import draw_growth
    from lm.sweep.coord_check import widened

    for width in widths:
        widened(config, width)  # refused now, not after the first widths are trained
    make_folder(args.out)

    config, batches = _prepared(config, args.seeds, args.tokens or widths[0])
    results, failures = [], []
    for name in optimizers:
        growths = _measure(config, name, widths, batches, args.steps)
        path = join(args.out, f"coord_check_{re.sub(r'[^A-Za-z0-9_]', '_', name)}.png")
        title = f"{args.config}, {name}: after {args.steps} steps, {args.seeds} seeds"
        draw_growth(growths, path, title=title)
        results.append(_as_json(name, growths, args.steps) | {"plot": path})
        if not args.json:
            print(f"{title}\n\n{_table(growths)}\n\n{_verdict(growths)}\nplot: {path}\n")
        wrong = growths["muP"].wrong()
        failures += [f"{name}: {_named(wrong)}"] if wrong else []
    if args.json:
        print(common.result_json({"config": args.config, "widths": widths, "results": results}))
    sys.stdout.flush()
    if failures:
        raise LmError(f"muP fails the coordinate check: {'; '.join(failures)}.")


def _widths(text: str) -> list[int]:
    if (
        not re.fullmatch(r"\d+(,\d+)+", text)
        or sorted(set(values := [int(part) for part in text.split(",")])) != values
    ):
        raise UsageError(f"--widths {text}: expected two or more increasing numbers, like 64,128,256,512.")
    if values[0] < 1:
        raise UsageError(f"--widths {text}: expected 1 or more.")
    return values


def _optimizers(text: str | None) -> list[str]:
    names = [] if text is None else text.split(",")
    for name in names:
        if name not in OPTIMIZERS and ":" not in name:
            raise UsageError(
                f'--optimizer {name}: expected some of {", ".join(OPTIMIZERS)} or "package.module:Name", separated by '
                f"commas.{did_you_mean(name, OPTIMIZERS)}"
            )
    return names


def _prepared(config: Config, seeds: int, tokens: int) -> tuple[Config, list[Any]]:
    """Return the config with its vocabulary, and per seed a batch of so many training tokens (of whole rows, or one)."""
    from lm.data.dataset import open_data
    from lm.data.loader import Loader
    from lm.data.prepare import prepare
    from lm.resolve import with_vocabulary

    data = config.data
    dataset = open_data(prepare(data, progress=common.data_progress(common.note)), data.verify)
    loaders = [
        Loader.of_config(
            config, dataset, stages=(), batch_size=max(1, tokens // data.sequence_length), seed=seed, num_steps=None
        )
        for seed in range(seeds)
    ]
    batches = [{name: a[:, :tokens] for name, a in loader.batch(0).items()} for loader in loaders]
    return with_vocabulary(config, dataset.vocab_size), batches


def _measure(config: Config, optimizer: str, widths: list[int], batches: list[Any], steps: int) -> dict[str, Any]:
    from lm.sweep.coord_check import measure, parametrizations

    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name=optimizer))
    configs = parametrizations(config, widths[0])
    total, done = len(configs) * len(widths) * len(batches), 0
    show = common.progress_line(f"{optimizer}, {steps} steps each", "models", tells_end=True)

    def progress() -> None:
        nonlocal done
        done += 1
        show(done, total)

    return {name: measure(own, widths, batches, steps=steps, progress=progress) for name, own in configs.items()}


def _as_json(optimizer: str, growths: dict[str, Any], steps: int) -> dict[str, Any]:
    from lm.sweep.coord_check import KINDS

    out: dict[str, Any] = {"optimizer": optimizer, "passed": not growths["muP"].wrong(), "parametrizations": {}}
    for label, growth in growths.items():
        judged = growth.judged()
        out["parametrizations"][label] = [
            {
                "activation": name,
                "of": kind,
                "judged": (kind, name) in judged,
                "slope": growth.slope(kind, name),
                "slopes_by_step": [growth.slope(kind, name, step) for step in range(steps + 1)],
                "sizes": growth.sizes(kind, name).tolist(),
            }
            for name in growth.rms
            for kind in KINDS
        ]
    return out


def _table(growths: dict[str, Any]) -> str:
    """Return a row per activation: its slope and its change's, under each parametrization."""
    from lm.sweep.coord_check import TOLERANCE

    names, judged = list(growths["muP"].rms), growths["muP"].judged()
    width = max(map(len, names))
    head = "".join(f"{label + ': RMS':>16}{'change':>9}" for label in growths)
    lines = ["slopes of log2 RMS over log2 width (0: the same at every width; !: beyond the tolerance)", ""]
    lines.append(f"{'':<{width}}{head}")
    for name in names:
        cells = ""
        for growth in growths.values():
            for kind, size in (("rms", 15), ("change", 8)):
                slope = growth.slope(kind, name)
                text = "-" if slope is None else f"{slope:+.2f}"
                cells += f"{text:>{size}}" + ("!" if slope is not None and not abs(slope) <= TOLERANCE else " ")
        lines.append(f"{name:<{width}}{cells}" + ("" if ("change", name) in judged else "  (not judged)"))
    return "\n".join(lines)


def _named(wrong: dict[tuple[str, str], float]) -> str:
    (kind, name), slope = next(iter(wrong.items()))
    what = "the change of " if kind == "change" else ""
    return f"{what}{name} has the slope {slope:+.2f}, expected 0 within 0.1"


def _verdict(growths: dict[str, Any]) -> str:
    lines = []
    for label, growth in growths.items():
        wrong, count = growth.wrong(), len(growth.judged())
        says = (
            f"fails in {len(wrong)} of {count} slopes; {_named(wrong)}" if wrong else f"passes, all of {count} slopes"
        )
        lines.append(f"{label}: {says}")
    return "\n".join(lines)
