"""`lm train`: a config file to a trained model."""

import argparse
import functools
import os
import sys
from typing import Any

from lm.commands import cluster, common, supervisor
from lm.commands.training import run_training

HELP = "Train a model; continues where it stopped if the folder holds a run of the same config."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with a get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder, local or gs://, s3://")
    parser.add_argument("--json", action="store_true", help="print the final figures as one JSON object")
    cluster.add_arguments(parser)
    parser.epilog = (
        "example:\n"
        "  lm train --config experiments/tiny.py --workdir runs/tiny --config.optimizer.learning_rate=2e-3\n\n"
        "Several hosts run the same command, each with its --process-id; --workdir is a folder that all see.\n\n"
        "Exit codes: 0 done; 2 config or missing input; 42 stopped by SIGTERM or Ctrl-C after saving, or by another\n"
        "host's death (the same command continues); 1 damaged or unwritable files."
    )


def run(args: argparse.Namespace) -> None:
    named = cluster.named(args)
    is_child = cluster.CHILD in os.environ
    if cluster.may_have_hosts(named) and not is_child:
        sys.exit(supervisor.supervise(args.arguments))
    if is_child:
        supervisor.die_with_parent()

    from lm.train.interrupts import Interrupts
    from lm.train.timeline import process_start

    # A process that was started for this alone began with it; one that called `main` did not.
    began = process_start() if sys.argv[1:] == args.arguments else None
    with Interrupts().installed() as interrupts:
        try:
            config_dict = common.load_config(args.config, args.overrides)
            config = common.resolve_here(config_dict, functools.partial(cluster.join, named) if is_child else None)
            result = run_training(config, args.workdir, config_file=args.config, interrupts=interrupts, began=began)
        except BaseException as error:
            cluster.leave(error)
            raise
    if result is not None:
        _show(args, result)


def _show(args: argparse.Namespace, result: dict[str, Any]) -> None:
    from lm.train.metrics import to_json

    if args.json:
        print(to_json(result))
    else:
        if result["sample"]:
            print(f"sample at step {result['step']}:\n{result['sample'].rstrip()}\n")
        if result["bits_per_byte"] is not None:
            print(f"validation bits per byte: {result['bits_per_byte']:.4f}")
        print(f"report: {result['report']}")
    sys.stdout.flush()
