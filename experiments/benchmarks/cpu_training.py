"""Training speed on this machine's CPU beside PyTorch eager: tokens per second of whole steps.

    python -m experiments.benchmarks.cpu_training --torch-python path/to/python-with-torch

The same GPT-2 on both sides: learned positions, LayerNorm and biases, tanh-GELU, tied head, causal attention,
AdamW with decay on kernels and embeddings, global-norm clipping at 1, all in f32. Ours is the training loop's
step: `build_step`, state donated, batches and hyperparameters placed by the prefetching thread, metrics fetched
a step late. PyTorch's is what a careful user writes in eager mode: fused scaled_dot_product_attention and, where
`torch.optim.AdamW` has it for the CPU, its fused update.

Each side is a process of its own. They take turns of a few seconds, one idle while the other works, in rounds
that alternate who goes first, so that a noisy neighbour meets both; the ratio is the median of the rounds'
ratios. On a machine that others load, wall times mean little and OpenMP's threads spin: put `taskset -c 0` before
the command, and compare the CPU times of one thread each. Parameters must be equal in number, and both first losses ln V. Prints a table in Markdown, then one
JSON object. `--config.a.b=v` changes our config. Needs `pip install -e '.[peer]'`, here or, with --torch-python,
in an environment that needs nothing but torch and numpy.
"""

import argparse
import json
import math
import os
import statistics
import sys

from experiments.benchmarks import training_sides
from experiments.benchmarks.training_sides import OPTIMIZER, Torch
from experiments.benchmarks.turns import Side, serve, take_turns

SHAPES = {
    "L4 D128 N4 T64 B12 V65": {"L": 4, "D": 128, "N": 4, "T": 64, "B": 12, "V": 65},
    "L6 D384 N6 T256 B8 V65": {"L": 6, "D": 384, "N": 6, "T": 256, "B": 8, "V": 65},
    "L6 D384 N6 T256 B8 V8192": {"L": 6, "D": 384, "N": 6, "T": 256, "B": 8, "V": 8192},
}


class Ours(training_sides.Ours):
    """Our side at a shape."""

    def __init__(self, shape: dict[str, int], overrides: list[tuple[str, str]]):
        from lm.commands.common import resolve_here
        from lm.config import apply_overrides, default
        from lm.presets import preset

        config = default()
        config.model.update(preset("gpt2"))
        config.model.num_layers, config.model.d_model, config.model.d_ff = shape["L"], shape["D"], 4 * shape["D"]
        config.model.num_heads = config.model.num_kv_heads = shape["N"]
        config.model.vocab_size, config.model.max_positions = shape["V"], shape["T"]
        config.data.sequence_length, config.data.batch_size = shape["T"], shape["B"]
        config.data.document_mask = False
        apply_overrides(config, [*OPTIMIZER.items(), *overrides])
        # As `lm train` does: the CPU's devices, malloc's settings, the layers' loop.
        super().__init__(resolve_here(config))


def work(side: str, shape: dict[str, int], overrides: list[str]) -> None:
    """Be one side."""
    pairs = [tuple(text.removeprefix("--config.").split("=", 1)) for text in overrides]
    serve(lambda: Ours(shape, pairs) if side == "ours" else Torch(shape))


def start(side: str, python: str, name: str, overrides: list[str]) -> Side:
    """Start a side's process."""
    command = [python, os.path.abspath(__file__), "--worker", side, "--shape", name, *overrides]
    return Side("cpu_training", command, {"JAX_PLATFORMS": "cpu"})


def compare(name: str, args: argparse.Namespace, overrides: list[str]) -> dict:
    """Measure both sides at one shape."""
    shape = SHAPES[name]
    sides = {
        "ours": start("ours", sys.executable, name, overrides),
        "torch": start("torch", args.torch_python, name, []),
    }
    try:
        counts = {side: process.about["parameters"] for side, process in sides.items()}
        if len(set(counts.values())) > 1:
            sys.exit(f"cpu_training: {name}: not the same model: {counts} parameters.")
        for side, process in sides.items():
            if abs(process.about["first_loss"] - math.log(shape["V"])) > 0.15:
                sys.exit(f"cpu_training: {name}: {side}'s first loss {process.about['first_loss']:.3f} is not ln V.")
        tokens = shape["B"] * shape["T"]
        turns = take_turns(sides, rounds=args.rounds, seconds=args.seconds)
        rates = {side: [tokens / turn["seconds"] for turn in own] for side, own in turns.items()}
        cpu = {side: [turn["cpu_seconds"] for turn in own] for side, own in turns.items()}
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        return {
            "shape": name,
            "parameters": counts["ours"],
            "first_loss": {side: process.about["first_loss"] for side, process in sides.items()},
            "threads": {side: process.about["threads"] for side, process in sides.items()},
            "tokens_per_second": {side: statistics.median(values) for side, values in rates.items()},
            "step_milliseconds": {side: 1e3 * tokens / statistics.median(values) for side, values in rates.items()},
            "cpu_milliseconds": {side: 1e3 * statistics.median(values) for side, values in cpu.items()},
            "ratio": statistics.median(ratios),
            "rounds": {**rates, "ratio": ratios},
        }
    finally:
        for process in sides.values():
            process.close()


HEADER = (
    "| shape | parameters | ours, tokens/s | PyTorch eager, tokens/s | ours/PyTorch | step, ms | CPU time, ms |\n"
    "|---|---|---|---|---|---|---|"
)


def table_row(result: dict) -> str:
    """Return a result as a row under `HEADER`: medians, and in brackets the least and the most of the rounds."""

    def spread(name: str, form: str) -> str:
        values = result["rounds"][name]
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    def sides(name: str) -> str:
        return f"{result[name]['ours']:.0f} against {result[name]['torch']:.0f}"

    return (
        f"| {result['shape']} | {result['parameters']:,} | {spread('ours', ',.0f')} | {spread('torch', ',.0f')} | "
        f"**{spread('ratio', '.2f')}** | {sides('step_milliseconds')} | {sides('cpu_milliseconds')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and numpy")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn, about")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one of the shapes (default: all)")
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if wrong := [text for text in overrides if not text.startswith("--config.") or "=" not in text]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if args.worker:
        work(args.worker, SHAPES[args.shape[0]], overrides)
        return
    if os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2:
        print(
            f"cpu_training: the machine is busy (load {os.getloadavg()[0]:.1f}): not figures to keep", file=sys.stderr
        )
    print(HEADER, flush=True)
    results = []
    for name in args.shape or SHAPES:
        results.append(compare(name, args, overrides))
        print(table_row(results[-1]), flush=True)
    print()
    print(json.dumps({"results": results, "overrides": overrides}))


if __name__ == "__main__":
    main()
