"""`lm data`: `build`, `card` and `download`; `where`, `import` and `export` are in files beside this one."""

import argparse
import json

from lm.commands import data_build, data_formats, data_where

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
        help="a config's text to a folder of token shards; a corpus from raw dumps",
        epilog="examples:\n  lm data build --config experiments/tiny.py --config.data.path='books/*.txt' --out DIR\n"
        "  lm data build --config experiments/data/four_domains.py --out DIR --workers 16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data_build.add_arguments(build)
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
    if args.action == "build":
        folder, content = data_build.run(args)
    else:
        from lm.data.prepare import fetch_shards
        from lm.storage import is_remote

        content = data_build.card_of(args.folder)
        folder = (
            fetch_shards(args.folder) if is_remote(args.folder) and not (content and not args.verify) else args.folder
        )
    _show(args, folder, content)


def _show(args: argparse.Namespace, folder: str, content: dict | None) -> None:
    """Print the card: that of a corpus, or the counts of a prepared folder."""
    from lm.data.card import card, card_text
    from lm.data.dataset import open_data

    if content is None:
        content = card(open_data(folder, verify=args.action == "card" and args.verify))
        print(json.dumps(content) if args.json else card_text(content))
        return
    from lm.report.data_card_words import card_text as corpus_text

    if args.action == "card" and args.verify:
        card(open_data(folder, verify=True))  # raises if a shard is damaged
    print(json.dumps(content) if args.json else corpus_text(content))


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
