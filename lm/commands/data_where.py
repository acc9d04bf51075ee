"""`lm data where`: which documents were in a batch."""

import argparse
import dataclasses
import json
from typing import Any

from lm.config import Config
from lm.errors import ConfigError, UsageError


def add_action(actions) -> None:
    """Declare the action and its arguments."""
    where = actions.add_parser(
        "where",
        help="which documents a step trained on: source, id, place in the document",
        epilog="examples:\n  lm data where --run runs/tiny --step 400\n"
        "  lm data where --config experiments/tiny.py --manifest DIR --step 400 --row 3 --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where.add_argument("--run", metavar="WORKDIR", help="a run's folder, for its config and data")
    where.add_argument("--config", metavar="FILE", help="an experiment, for the config")
    where.add_argument("--manifest", metavar="DIR", help="a folder of shards (default: the config's data)")
    where.add_argument("--step", type=int, required=True, metavar="N", help="as metrics.jsonl counts them, from 1")
    where.add_argument("--row", type=int, metavar="R", help="of the batch, from 0 (default: all)")
    where.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Carry the action out."""
    from lm.commands import common
    from lm.data.dataset import open_data
    from lm.data.loader import Loader
    from lm.data.prepare import prepare
    from lm.data.where import where

    config, expected = _config(args)
    if args.manifest:
        data = dataclasses.replace(config.data, source="shards", path=args.manifest, max_documents=None)
        config = dataclasses.replace(config, data=data)
    if not 1 <= args.step <= config.optimizer.num_steps:
        raise UsageError(f"--step {args.step}: the run has steps 1 to {config.optimizer.num_steps}.")
    # Hashing all shards would take longer than the answer; their sizes are checked.
    dataset = open_data(prepare(config.data, progress=common.data_progress(common.note)), verify=False)
    if expected and dataset.hash != expected:
        raise ConfigError(
            f'the data in "{dataset.folder}" (manifest {dataset.hash[:12]}) is not what "{args.run}" was trained on '
            f"(manifest {expected[:12]}); give that with --manifest."
        )
    loader = Loader.of_config(config, dataset)
    size = loader.stages.at(args.step - 1).batch_size
    if args.row is not None and not 0 <= args.row < size:
        raise UsageError(f"--row {args.row}: the batch of step {args.step} has rows 0 to {size - 1}.")
    rows = where(loader, args.step - 1, None if args.row is None else [args.row])
    if not all("id" in piece for row in rows for piece in row["documents"]):
        common.note(
            f'"{dataset.folder}" does not say where all documents come from (it was built before that was kept); '
            "they are given by shard and number."
        )
    content = {
        "step": args.step,
        "folder": dataset.folder,
        "hash": dataset.hash,
        "sequence_length": loader.stages.at(args.step - 1).sequence_length,
        "rows": rows,
    }
    print(json.dumps(content) if args.json else _text(content))


def _config(args: argparse.Namespace) -> tuple[Config, str | None]:
    """Return the config, and the hash of the data that it was trained on, if that is known."""
    from lm.checkpoint.run_folder import read_run_info
    from lm.commands import common
    from lm.fields import build

    if (args.run is None) == (args.config is None):
        raise UsageError("lm data where takes --run WORKDIR or --config FILE.")
    if args.config:
        return common.resolve_anywhere(common.load_config(args.config, args.overrides)), None
    if args.overrides:
        raise UsageError(f"--config.{args.overrides[0][0]}: --run WORKDIR has the run's own config.")
    info = read_run_info(args.run)
    common.find_extensions_in(info.get("config_folder", "."))
    return build(Config, info["config"], ""), info["data"]["manifest_hash"]


def _text(content: dict[str, Any]) -> str:
    from lm.train.console import printable

    lines = [f"step {content['step']}: {len(content['rows'])} rows of {content['sequence_length']} tokens"]
    for row in content["rows"]:
        domain = f", {row['domain']}" if row["domain"] else ""
        lines += ["", f"row {row['row']} ({row['shard']}{domain})"]
        for piece in row["documents"]:
            known = [piece.get(name) for name in ("source", "id", "url")]
            name = " ".join(filter(None, known)) or f"document {piece['document']}"
            lines.append(
                f"  columns {piece['column']} to {piece['column'] + piece['tokens'] - 1}: {piece['tokens']:,} tokens of "
                f"{name}, from its token {piece['token']:,}, byte {piece['byte']:,}"
            )
            lines.append(f"    {piece['text'][:100]!r}")
    return printable("\n".join(lines))
