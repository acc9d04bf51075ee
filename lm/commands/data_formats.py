"""`lm data import` and `lm data export`: other programs' token files."""

import argparse
import json

from lm.errors import UsageError


def add_actions(actions) -> None:
    """Declare both actions and their arguments."""
    bring = actions.add_parser(
        "import",
        help="token files of nanoGPT, llm.c, Megatron-LM or datatrove to a folder of shards",
        epilog="example:\n  lm data import --from train.bin --validation val.bin --format nanogpt --tokenizer gpt2 --out DIR",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bring.add_argument(
        "--from", dest="source", required=True, metavar="PATH", help="training files: one, a folder, a glob"
    )
    bring.add_argument("--validation", metavar="PATH", help="those of the validation split")
    bring.add_argument("--test", metavar="PATH", help="those of the test split")
    bring.add_argument("--format", required=True, metavar="NAME", help="nanogpt, llmc, megatron or datatrove")
    bring.add_argument(
        "--tokenizer", required=True, metavar="T", help="that they were made with: a name or a .tiktoken file"
    )
    bring.add_argument("--domain", metavar="NAME", help="what the documents are mixed as")
    bring.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    bring.add_argument("--shard-tokens", type=int, default=100_000_000, metavar="N", help="tokens per shard, about")
    bring.add_argument("--json", action="store_true", help="print one JSON object")
    give = actions.add_parser(
        "export",
        help="a split of a folder of shards to a token file of another program",
        epilog="example:\n  lm data export DIR --format megatron --out /tmp/corpus",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    give.add_argument("folder", metavar="DIR", help="a folder made by `lm data build` or `lm data import`")
    give.add_argument("--format", required=True, metavar="NAME", help="nanogpt, llmc, megatron or datatrove")
    give.add_argument("--split", default="train", metavar="NAME", help="train (default), validation or test")
    give.add_argument("--out", required=True, metavar="PATH", help="the file; Megatron-LM's: without .bin and .idx")
    give.add_argument("--json", action="store_true", help="print one JSON object")


def run_import(args: argparse.Namespace) -> None:
    """Carry `import` out and print the new folder's card."""
    from lm.commands import common
    from lm.data.card import card, card_text
    from lm.data.dataset import open_data
    from lm.data.formats.convert import import_tokens
    from lm.storage import is_remote
    from lm.tokenizer import load_tokenizer

    common.require_positive(args, "shard_tokens")
    if is_remote(args.out):
        raise UsageError(f"--out {args.out}: expected a local folder; copy it to the store afterwards.")
    named = {"train": args.source, "validation": args.validation, "test": args.test}
    import_tokens(
        {split: path for split, path in named.items() if path},
        args.format,
        load_tokenizer(args.tokenizer),
        args.out,
        shard_tokens=args.shard_tokens,
        domain=args.domain,
        progress=common.data_progress(common.note),
    )
    content = card(open_data(args.out, verify=False))  # just written and hashed
    print(json.dumps(content) if args.json else card_text(content))


def run_export(args: argparse.Namespace) -> None:
    """Carry `export` out and print the files."""
    from lm.data.dataset import open_data
    from lm.data.formats.convert import export_tokens
    from lm.data.prepare import fetch_shards
    from lm.storage import is_remote

    folder = fetch_shards(args.folder) if is_remote(args.folder) else args.folder
    dataset = open_data(folder)
    files = export_tokens(dataset, args.split, args.format, args.out)
    counts = dataset.counts(args.split)
    content = {"files": files, "documents": counts["documents"], "tokens": counts["tokens"]}
    print(json.dumps(content) if args.json else "\n".join(files))
