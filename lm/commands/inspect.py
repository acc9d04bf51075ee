"""`lm inspect`: what is in a checkpoint (numpy and TensorStore, no JAX), or what a config amounts to."""

import argparse
import json
from typing import Any

from lm.commands import common, inspect_checkpoint
from lm.errors import UsageError

HELP = "What is in a checkpoint (read without JAX), or a config's parameters, FLOPs and memory."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inspect_checkpoint.add_arguments(parser)
    parser.add_argument("--config", metavar="FILE", help="look at a config file instead")
    parser.add_argument("--preset", metavar="NAME", help="look at a shape of lm/presets.py; all: list them")
    parser.add_argument(
        "--devices", type=int, default=8, metavar="N", help="that share the state under ZeRO (default 8)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "examples:\n  lm inspect runs/tiny\n"
        "  lm inspect runs/tiny/checkpoints/400 --verify\n"
        "  lm inspect runs/tiny --array layers/mlp/up/kernel --out up.npy\n"
        "  lm inspect runs/tiny --step 400 --diff runs/tiny --diff-step 600\n"
        "  lm inspect --config experiments/llama_7b.py --devices 64 --config.optimizer.name=muon\n"
        "  lm inspect --preset all"
    )


def run(args: argparse.Namespace) -> None:
    if sum(given is not None for given in (args.checkpoint, args.config, args.preset)) != 1:
        raise UsageError("lm inspect takes a CHECKPOINT, --config FILE or --preset NAME, one of them.")
    if args.config is None and args.overrides:
        raise UsageError(f"--config.{args.overrides[0][0]} needs --config FILE.")
    common.require_positive(args, "devices")
    if args.preset == "all":
        _list_presets(args)
        return
    if args.checkpoint:
        inspect_checkpoint.run(args)
        return
    for name in ("step", "items", "verify", "array", "out", "diff", "diff_step"):
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} needs a CHECKPOINT.")
    result = _inspect_config(args)
    if args.json:
        print(json.dumps(result))
    else:
        _show(result)


def _list_presets(args: argparse.Namespace) -> None:
    from lm.config import default
    from lm.model.flops import parameter_counts
    from lm.presets import PRESETS, preset
    from lm.resolve import resolve

    counts = {}
    for name in PRESETS:
        config = default()
        config.model.update(preset(name))
        counts[name] = parameter_counts(resolve(config).model)
    if args.json:
        print(json.dumps(counts))
        return
    print(f"{'preset':<16}{'parameters':>20}{'non-embedding':>20}{'active':>20}")
    for name, of in counts.items():
        print(f"{name:<16}{of['total']:>20,}{of['non_embedding']:>20,}{of['active']:>20,}")


def _inspect_config(args: argparse.Namespace) -> dict[str, Any]:
    from lm.config import default
    from lm.model.flops import flops_per_token, parameter_counts, parameter_shapes, train_flops_per_token
    from lm.parallel.state_bytes import state_bytes
    from lm.presets import preset
    from lm.resolve import with_vocabulary

    if args.preset:
        config_dict = default()
        config_dict.model.update(preset(args.preset))
        config_dict.data.sequence_length = config_dict.model.max_positions or 2048
    else:
        config_dict = common.load_config(args.config, args.overrides)
    config = common.resolve_anywhere(config_dict)
    if config.model.vocab_size is None:
        config = with_vocabulary(config, common.tokenizer_vocabulary(config))
    length, counts = config.data.sequence_length, parameter_counts(config.model)
    return {
        "config": args.config or args.preset,
        "parameters": counts["total"],
        "non_embedding_parameters": counts["non_embedding"],
        "active_parameters": counts["active"],
        "sequence_length": length,
        "forward_flops_per_token": dict(flops_per_token(config.model, length)),
        "train_flops_per_token": train_flops_per_token(config.model, length),
        **({} if args.preset else _training(config)),  # a shape alone trains on nothing
        "devices": args.devices,
        "state_bytes_per_device": {f"zero_{n}": part for n, part in state_bytes(config, args.devices).items()},
        "arrays": [{"path": path, "shape": list(shape)} for path, shape in parameter_shapes(config.model).items()],
    }


def _training(config) -> dict[str, Any]:
    """Return the tokens and FLOPs of the whole run, over all stages of its schedule."""
    from lm.data.stages import Stages
    from lm.model.flops import train_flops_per_token

    stages, num_steps = Stages(config.data.schedule, config.data.sequence_length), config.optimizer.num_steps
    by_stage = {stage.first: stage.batch_size * stage.sequence_length for stage in stages}
    return {
        "tokens_per_step": by_stage if len(stages) > 1 else stages.tokens(1),
        "training_tokens": stages.tokens(num_steps),
        "training_flops": sum(
            tokens * train_flops_per_token(config.model, length)
            for length, tokens in stages.tokens_by_length(num_steps).items()
        ),
    }


def _show(result: dict[str, Any]) -> None:
    arrays, by_stage = result.pop("arrays"), result.pop("state_bytes_per_device", None)
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_figure(part)}" for key, part in value.items())
        print(f"{name.replace('_', ' ')}: {_figure(value)}")
    if by_stage:
        print(f"state per device on {result['devices']} devices, activations come on top:")
        for stage, parts in by_stage.items():
            sizes = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
            print(f"  {stage.replace('zero_', 'ZeRO ')}: {sizes}")
    print()
    width = max(len(a["path"]) for a in arrays)
    for a in arrays:
        print(f"{a['path']:<{width}}  {tuple(a['shape'])!s}")


def _figure(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:.4g}" if value >= 1e15 else f"{value:,.0f}"
    return str(value)


def _size(num_bytes: int) -> str:
    exponent, unit = (30, "GiB") if num_bytes >= 2**28 else (20, "MiB")
    return f"{num_bytes / 2**exponent:.2f} {unit}"
