"""`lm export`: a checkpoint in another library's format, written with numpy and TensorStore, without JAX."""

import argparse
import json

from lm.checkpoint.run_folder import locate, read_run_info
from lm.commands import common
from lm.commands.opened import add_checkpoint_arguments, chosen_weights
from lm.errors import UsageError
from lm.storage import join, list_names, make_folder

HELP = "A checkpoint as a folder that Hugging Face's transformers loads: weights, config and tokenizer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser, average=False)
    parser.add_argument("--format", choices=("hf",), default="hf", help="hf: Hugging Face transformers (default)")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as they are stored)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "example:\n  lm export --checkpoint runs/gpt2 --format hf --out exported --dtype bfloat16\n\n"
        'AutoModelForCausalLM and AutoTokenizer load it with from_pretrained("exported"). Tokens and logits are the\n'
        "same; a document begins with <|endoftext|>, which the tokenizer does not add. The vocabulary keeps its padding\n"
        "to a multiple of 128, and generation_config.json bars those ids."
    )


def run(args: argparse.Namespace) -> None:
    from lm.checkpoint.layout import read_newest
    from lm.checkpoint.reader import CheckpointReader
    from lm.config import Config
    from lm.fields import build
    from lm.interop.families import family_of
    from lm.interop.huggingface import export
    from lm.tokenizer import load_tokenizer

    workdir, folder, step = locate(args.checkpoint, args.step)
    info = read_run_info(workdir)
    config = build(Config, info["config"], "")
    family_of(config.model)  # refused before a folder is made
    weights = chosen_weights(args.weights, config, workdir)
    tokenizer = load_tokenizer(join(workdir, "tokenizer.tiktoken"))
    if list_names(args.out):
        raise UsageError(f'--out "{args.out}" is not empty; choose a new folder.')
    show = common.progress_line("tensors")

    def write(step: int) -> dict:
        reader = CheckpointReader(join(folder, str(step)))
        make_folder(args.out)
        written = export(reader, config, tokenizer, args.out, weights=weights, dtype=args.dtype, progress=show)
        return {**written, "step": step, "weights": weights, "checkpoint": args.checkpoint, "out": args.out}

    result = read_newest(folder, step, write, common.note)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['architecture']}, {result['parameters']:,} parameters in {result['dtype']}: {args.out}")
    print(
        f"step {result['step']}, {weights}; {result['vocab_size']} ids, {result['tokenizer_vocab_size']} with a token"
    )
