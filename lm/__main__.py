"""`python -m lm VERB`: the front door. Heavy imports wait until a verb runs."""

import argparse
import importlib
import os
import sys

from lm import __version__
from lm.commands.verbs import VERBS, split_overrides
from lm.errors import LmError, UsageError, did_you_mean

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
