"""`lm tokenizer train` and `lm tokenizer info`."""

import argparse
import json

HELP = "train a byte-level BPE tokenizer (train), or look at one (info)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.epilog = """examples:
  lm tokenizer train --input 'books/*.txt' --vocab-size 8192 --out books.tiktoken
  lm tokenizer info books.tiktoken --input 'books/*.txt'
  lm tokenizer info gpt2"""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser(
        "train",
        help="learn merges from text files",
        epilog="example:\n  lm tokenizer train --input 'books/*.txt' --vocab-size 8192 --out books.tiktoken",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--input", nargs="+", required=True, metavar="GLOB", help="text files, folders or globs")
    train.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="ids in all: 256 bytes, merges, <|endoftext|>"
    )
    train.add_argument("--pattern", choices=("gpt2", "gpt4"), default="gpt4", help="pre-tokenizer (default: gpt4)")
    train.add_argument("--out", required=True, metavar="FILE", help="X.tiktoken; X.json is written beside it")
    train.add_argument("--json", action="store_true", help="print one JSON object")
    info = actions.add_parser(
        "info",
        help="vocabulary, special tokens, sha256; bytes per token of a text",
        epilog="example:\n  lm tokenizer info gpt2 --input README.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("tokenizer", metavar="NAME_OR_FILE", help="gpt2, r50k_base, cl100k_base, o200k_base or a file")
    info.add_argument("--input", nargs="+", default=[], metavar="GLOB", help="text files to encode")
    info.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Carry the verb out."""
    result = _train(args) if args.action == "train" else _info(args)
    print(json.dumps(result) if args.json else "\n".join(f"{name:<16}{_show(value)}" for name, value in result.items()))


def _show(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _texts(patterns: list[str]):
    from lm.config import DataConfig
    from lm.data.sources import text

    for pattern in patterns:
        for document in text(DataConfig(source="text", path=pattern)):
            yield document.text


def _train(args: argparse.Namespace) -> dict:
    from lm.commands import common
    from lm.errors import UsageError
    from lm.tokenizer import save, train_bpe

    if not args.out.endswith(".tiktoken"):  # before the work, not after it
        raise UsageError(f'--out must end in ".tiktoken": "{args.out}".')
    progress = common.data_progress(common.note)
    texts = _texts(args.input)
    tokenizer = train_bpe(texts, args.vocab_size, args.pattern, lambda done: progress("train tokenizer", done))
    save(tokenizer, args.out)
    return {"path": args.out, **_describe(tokenizer), "characters": tokenizer.training["characters"]}


def _info(args: argparse.Namespace) -> dict:
    from lm.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    result = _describe(tokenizer)
    if args.input:
        size = tokens = documents = 0
        exact = True
        for text in _texts(args.input):
            ids = tokenizer.encode(text)
            documents, tokens, size = documents + 1, tokens + len(ids), size + len(text.encode())
            exact = exact and tokenizer.decode(ids) == text
        result |= {"documents": documents, "bytes": size, "tokens": tokens}
        result |= {"bytes_per_token": size / tokens if tokens else None, "round_trip": exact}
    return result


def _describe(tokenizer) -> dict:
    return {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.sha256,
        "pattern": tokenizer.pattern,
        "specials": tokenizer.specials,
    }
