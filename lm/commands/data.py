"""`lm data build` and `lm data card`."""

import argparse
import json

HELP = "raw text to token shards (build), and what is in them (card)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.epilog = """examples:
  lm data build --config experiments/tiny.py --out /tmp/tiny-data
  lm data card /tmp/tiny-data --verify"""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build",
        help="source, tokenizer and splits of a config to a folder of token shards",
        epilog="example:\n  lm data build --config experiments/tiny.py --config.data.path='books/*.txt' --out DIR",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("--config", required=True, metavar="FILE", help="an experiment; its data section is used")
    build.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    build.add_argument("--shard-tokens", type=int, default=100_000_000, metavar="N", help="tokens per shard, about")
    build.add_argument("--json", action="store_true", help="print one JSON object")
    card = actions.add_parser(
        "card",
        help="documents, tokens and bytes of a prepared folder",
        epilog="example:\n  lm data card /tmp/tiny-data --verify",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    card.add_argument("folder", metavar="DIR", help="a folder made by `lm data build`, or of the cache")
    card.add_argument("--verify", action="store_true", help="hash every shard against the manifest")
    card.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Carry the verb out."""
    from lm.data.card import card, card_text
    from lm.data.dataset import open_data

    if args.action == "build":
        _build(args)
        dataset = open_data(args.out, verify=False)  # just written and hashed
    else:
        dataset = open_data(args.folder, verify=args.verify)
    content = card(dataset)
    print(json.dumps(content) if args.json else card_text(content))


def _build(args: argparse.Namespace) -> None:
    from lm.commands import common
    from lm.data.build import build
    from lm.errors import UsageError

    if args.shard_tokens < 1:
        raise UsageError(f"--shard-tokens={args.shard_tokens}: expected at least 1.")
    config = common.resolve_anywhere(common.load_config(args.config, args.overrides))
    progress = common.data_progress(common.note)
    build(config.data, args.out, progress=progress, shard_tokens=args.shard_tokens)
