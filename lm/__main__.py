"""`python -m lm VERB`: the front door. Heavy imports wait until a verb runs."""

import argparse
import importlib
import os
import sys

from lm import __version__
from lm.errors import LmError, UsageError, did_you_mean

VERBS = {  # in the order of use
    "train": "train a model; continues if the folder holds a run",
    "eval": "loss, perplexity and bits per byte of a checkpoint",
    "generate": "continue a prompt, streaming",
    "export": "a checkpoint in Hugging Face's format",
    "data": "build token shards from raw text; count what is in them",
    "tokenizer": "train a byte-level BPE; look at one",
    "find-lr": "a learning-rate range test: a suggestion, JSON and a plot",
    "sweep": "train every variant of a config with every seed, and say what the difference is worth",
    "report": "what a sweep says, as one page",
    "fit-scaling": "a scaling law over a sweep's runs: predicted loss of a larger one",
    "launch": "any verb as a job on cloud TPUs, a GPU cluster or this machine",
    "plan": "memory, communication and step time on hardware that is not here",
    "coord-check": "muP: do activations keep their size as the model gets wider",
    "inspect": "what is in a checkpoint, or a config's parameters and FLOPs",
}

_EXAMPLE = """example:
  lm train --config experiments/tiny.py --workdir runs/tiny
  lm generate --checkpoint runs/tiny --prompt "import os"

Any field of a config can be set: --config.model.num_layers=8
"""


def _parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<13}{text}" for name, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="lm",
        description=f"Train, evaluate and sample language models.\n\nverbs (lm VERB --help):\n{verbs}",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of the verbs above")
    parser.add_argument("--version", action="version", version=f"lm {__version__}")
    return parser


def split_overrides(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separate `--config.a.b=v` and `--config.a.b v` from the other arguments, wherever they stand before a `--`.

    Raises:
      UsageError: an override without a value.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":  # what follows is another verb's
            return [*rest, argument, *queue], overrides
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        path, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UsageError(f"{argument} needs a value: {argument}=VALUE.")
            value = queue.pop(0)
        overrides.append((path, value))
    return rest, overrides


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 2 usage, config or missing input, 42 preempted, 1 else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if not arguments or arguments[0].startswith("-"):
            _parser().parse_args(arguments)
        if arguments[0] not in VERBS:
            raise UsageError(
                f'"{arguments[0]}" is not a verb.{did_you_mean(arguments[0], VERBS)} Verbs: {", ".join(VERBS)}.'
            )
        rest, overrides = split_overrides(arguments[1:])
        verb = importlib.import_module(f"lm.commands.{arguments[0].replace('-', '_')}")
        parser = argparse.ArgumentParser(
            prog=f"lm {arguments[0]}", description=verb.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verb.add_arguments(parser)
        options = parser.parse_args(rest)
        if overrides and not hasattr(options, "config"):
            raise UsageError(
                f"lm {arguments[0]} takes no --config.{overrides[0][0]}; it reads the checkpoint's own config."
            )
        options.overrides, options.arguments = overrides, arguments
        verb.run(options)
        return 0
    except LmError as error:
        print(f"lm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lm: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "lm: the device is out of memory. Lower config.data.batch_size, raise config.optimizer.accumulation_steps, "
            "or set config.model.remat=full.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"lm: {error.filename or 'file'}: {error.strerror or error}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
