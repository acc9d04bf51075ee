"""`lm data`: `build`, `card` and `download`; `where`, `import` and `export` are in files beside this one."""

import argparse
import json

from lm.commands import data_formats, data_where

HELP = (
    "raw text to token shards (build), what is in them (card), which documents a batch holds (where), public corpora "
    "(download), and other programs' token files (import, export)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.epilog = """examples:
  lm data build --config experiments/tiny.py --out /tmp/tiny-data
  lm data card /tmp/tiny-data --verify
  lm data where --run runs/tiny --step 400
  lm data download enwik8
  lm data import --from train.bin --format nanogpt --tokenizer gpt2 --out DIR"""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build",
        help="source, tokenizer and splits of a config to a folder of token shards",
        epilog="example:\n  lm data build --config experiments/tiny.py --config.data.path='books/*.txt' --out DIR",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("--config", required=True, metavar="FILE", help="an experiment; its data section is used")
    build.add_argument("--out", required=True, metavar="DIR", help="a new folder, local or gs://, s3://")
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
    data_where.add_action(actions)
    data_formats.add_actions(actions)
    download = actions.add_parser(
        "download",
        help="public corpora, by name or URL, into the cache; continues where it stopped",
        epilog="examples:\n  lm data download --list\n  lm data download tinystories_valid\n"
        "then: lm train … --config.data.source=download --config.data.path=tinystories_valid",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    download.add_argument("corpus", nargs="?", metavar="NAME", help="a name of --list, or an http(s) URL")
    download.add_argument("--list", action="store_true", help="print the names")
    download.add_argument("--sha256", metavar="HEX", help="what the file at the URL must hash to")
    download.add_argument("--cache", metavar="DIR", help="instead of $LM_CACHE or ~/.cache/lm")
    download.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Carry the verb out."""
    others = {
        "download": _download,
        "where": data_where.run,
        "import": data_formats.run_import,
        "export": data_formats.run_export,
    }
    if args.action in others:
        return others[args.action](args)
    from lm.data.card import card, card_text
    from lm.data.dataset import open_data
    from lm.data.prepare import fetch_shards
    from lm.storage import is_remote

    if args.action == "build":
        dataset = open_data(_build(args), verify=False)  # just written and hashed
    else:
        folder = fetch_shards(args.folder) if is_remote(args.folder) else args.folder
        dataset = open_data(folder, verify=args.verify)
    content = card(dataset)
    print(json.dumps(content) if args.json else card_text(content))


def _build(args: argparse.Namespace) -> str:
    from lm.commands import common
    from lm.data.build import build
    from lm.errors import UsageError

    if args.shard_tokens < 1:
        raise UsageError(f"--shard-tokens={args.shard_tokens}: expected at least 1.")
    config = common.resolve_anywhere(common.load_config(args.config, args.overrides))
    progress = common.data_progress(common.note)
    return build(config.data, args.out, progress=progress, shard_tokens=args.shard_tokens)


def _download(args: argparse.Namespace) -> None:
    from lm.commands import common
    from lm.data.download import fetch, record
    from lm.data.sources.named import NAMED, corpus_of, folder_of
    from lm.errors import UsageError

    if bool(args.corpus) == args.list:
        raise UsageError("lm data download takes a NAME or a URL, or --list.")
    if args.list:
        table = {name: _listed(corpus) for name, corpus in NAMED.items()}
        print(json.dumps(table) if args.json else _table(table))
        return
    corpus, folder = corpus_of(args.corpus, args.sha256), folder_of(args.corpus, args.cache)
    progress = common.data_progress(common.note, "")
    paths = [fetch(file, folder, progress) for file in corpus.files]
    files = [{"path": path, **record(file, folder)} for path, file in zip(paths, corpus.files, strict=True)]
    if args.json:
        print(json.dumps({"name": args.corpus, "license": corpus.license, "files": files}))
        return
    for file in files:
        print(f"{file['path']}\n  {file['bytes']:,} bytes, sha256 {file['sha256']} ({file['checksum']})")
    print(f"license: {corpus.license or 'not known'}")


def _listed(corpus) -> dict:
    sizes = [file.bytes for file in corpus.files]
    return {
        "files": [{"url": file.url, "sha256": file.sha256, "bytes": file.bytes} for file in corpus.files],
        "bytes": sum(sizes) if all(sizes) else None,
        "format": corpus.format,
        "license": corpus.license,
        "about": corpus.about,
    }


def _table(table: dict[str, dict]) -> str:
    lines = []
    for name, entry in table.items():
        size = f"{entry['bytes'] / 1e6:,.1f} MB" if entry["bytes"] else "size not known"
        checksum = "sha256 known" if all(file["sha256"] for file in entry["files"]) else "sha256 of the first download"
        number = f"{len(entry['files'])} files, " if len(entry["files"]) > 1 else ""
        lines += [f"{name:<20}{number}{size}, {checksum}; {entry['license']}", f"{'':<20}{entry['about']}"]
        lines += [f"{'':<20}{entry['files'][0]['url']}{' …' if number else ''}"]
    return "\n".join(lines)
