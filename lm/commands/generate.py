"""`lm generate`: continue a prompt, streaming."""

import argparse
import json
import sys

from lm.commands import common
from lm.commands.opened import add_checkpoint_arguments, open_checkpoint
from lm.errors import UsageError

HELP = "Continue a prompt; text appears as it is made."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser)
    parser.add_argument("--prompt", default="", metavar="TEXT", help='text to continue; "-" reads stdin')
    parser.add_argument("--max-new-tokens", type=int, default=128, help="per sample (default: 128)")
    parser.add_argument("--num-return-sequences", type=int, default=1, help="samples (default: 1, which streams)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the most likely token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k most likely tokens (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the smallest set of this mass (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, without streaming")
    parser.epilog = 'example:\n  lm generate --checkpoint runs/tiny --prompt "def main(" --temperature 0.7 --top-p 0.9'


def run(args: argparse.Namespace) -> None:
    common.require_positive(args, "max_new_tokens", "num_return_sequences")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed {args.seed}: expected 0 to {2**32 - 1}.")
    from lm.infer.sampling import SamplingConfig

    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p)
    opened = open_checkpoint(args)
    from lm.infer.generate import stream_text

    tokenizer = opened.tokenizer
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    prompts = [tokenizer.encode_document(prompt).tolist()] * args.num_return_sequences
    generator = opened.generator
    options = {"max_new_tokens": args.max_new_tokens, "sampling": sampling, "seed": args.seed}
    if args.num_return_sequences == 1 and not args.json:

        def show(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        show(prompt)
        stream_text(tokenizer, generator.stream(opened.params, prompts, **options), show)
        show("\n")
        return
    texts = [tokenizer.decode(ids) for ids in generator(opened.params, prompts, **options)]
    if args.json:
        result = {"prompt": prompt, "samples": texts, "step": opened.step, "weights": opened.weights, "seed": args.seed}
        print(json.dumps(result))
    else:
        for number, text in enumerate(texts, 1):
            print(f"--- sample {number}\n{prompt}{text}")
