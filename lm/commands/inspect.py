"""`lm inspect`: what is in a checkpoint (numpy and TensorStore, no JAX), or what a config amounts to."""

import argparse
import json
from typing import Any

from lm.commands import common
from lm.errors import UsageError
from lm.storage import join
from lm.train.run_folder import read_run_info

HELP = "What is in a checkpoint (read without JAX), or a config's parameters and FLOPs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="a run's folder")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest that can be read)")
    parser.add_argument("--config", metavar="FILE", help="look at a config file instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "example:\n  lm inspect runs/tiny\n  lm inspect --config experiments/gpt2_124m.py --config.model.num_layers=24"
    )


def run(args: argparse.Namespace) -> None:
    if (args.checkpoint is None) == (args.config is None):
        raise UsageError("lm inspect takes a CHECKPOINT or --config FILE, one of them.")
    if args.config is None and args.overrides:
        raise UsageError(f"lm inspect CHECKPOINT takes no --config.{args.overrides[0][0]}.")
    result = _inspect_config(args) if args.config else _inspect_checkpoint(args)
    if args.json:
        print(json.dumps(result))
    else:
        _show(result)


def _inspect_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from lm.checkpoint.layout import finished_steps, read_newest
    from lm.checkpoint.reader import CheckpointReader

    info = read_run_info(args.checkpoint)
    folder = join(args.checkpoint, "checkpoints")

    def read(step: int) -> dict[str, Any]:
        reader = CheckpointReader(join(folder, str(step)))
        arrays = []
        for path in reader.leaves("params"):
            value = reader.read("params", path)
            norm = float(np.sqrt(np.sum(np.square(value.astype(np.float64)))))
            arrays.append({"path": path, "shape": list(value.shape), "dtype": str(value.dtype), "norm": norm})
        return {
            "checkpoint": args.checkpoint,
            "step": step,
            "steps": finished_steps(folder),
            "fingerprint": info["fingerprint"],
            "data": reader.json("data"),
            "items": reader.items(),
            "parameters": sum(int(np.prod(a["shape"])) for a in arrays),
            "arrays": arrays,
        }

    return read_newest(folder, args.step, read, common.note)


def _inspect_config(args: argparse.Namespace) -> dict[str, Any]:
    from lm.config import with_vocabulary
    from lm.model.flops import flops_per_token, parameter_counts, parameter_shapes, train_flops_per_token

    config = common.resolve_anywhere(common.load_config(args.config, args.overrides))
    if config.model.vocab_size is None:
        config = with_vocabulary(config, common.tokenizer_vocabulary(config))
    length = config.data.sequence_length
    return {
        "config": args.config,
        "parameters": parameter_counts(config.model)["total"],
        "non_embedding_parameters": parameter_counts(config.model)["non_embedding"],
        "forward_flops_per_token": dict(flops_per_token(config.model, length)),
        "train_flops_per_token": train_flops_per_token(config.model, length),
        "tokens_per_step": config.data.batch_size * length,
        "arrays": [{"path": path, "shape": list(shape)} for path, shape in parameter_shapes(config.model).items()],
    }


def _show(result: dict[str, Any]) -> None:
    arrays = result.pop("arrays")
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {part:,}" if isinstance(part, int | float) else f"{key} {part}" for key, part in value.items()
            )
        elif isinstance(value, int | float):
            value = f"{value:,}"
        print(f"{name.replace('_', ' ')}: {value}")
    print()
    width = max(len(a["path"]) for a in arrays)
    for a in arrays:
        norm = f"{a['dtype']:>10}  norm {a['norm']:.4g}" if "norm" in a else ""
        print(f"{a['path']:<{width}}  {tuple(a['shape'])!s:<22}{norm}".rstrip())
