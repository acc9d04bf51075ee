"""`lm eval`: loss, perplexity and bits per byte of a checkpoint."""

import argparse

from lm.commands import common, eval_compare, eval_loss, eval_steps, eval_tasks
from lm.commands.opened import add_checkpoint_arguments, open_checkpoint
from lm.errors import UsageError

HELP = "Loss, perplexity and bits per byte of a checkpoint on a split of its data or on text files; tasks."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser, required=False)
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="which is better: two runs, steps (RUN/checkpoints/500) or items"
    )
    parser.add_argument("--all-steps", action="store_true", help="every checkpoint of the run")
    parser.add_argument("--out", metavar="FILE.svg", help="draw the curve of --all-steps")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="WHAT",
        help="train, validation or test of the run's own data, or text files, folders or globs (default: validation; ./test is a file)",
    )
    parser.add_argument(
        "--by", metavar="WHAT", help="domain (a split or file), position (in the window), or both: domain,position"
    )
    parser.add_argument("--stride", type=int, help="new tokens per window (default: half the window)")
    parser.add_argument("--sequence-length", type=int, help="tokens per window (default: the training length)")
    parser.add_argument("--batch-size", type=int, help="windows at a time (default: the training batch)")
    parser.add_argument("--max-tokens", type=int, help="score windows until this many tokens are")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    eval_tasks.add_arguments(parser)
    parser.epilog = (
        "examples:\n  lm eval --checkpoint runs/tiny --data validation --stride 32\n"
        "  lm eval --checkpoint runs/tiny --data validation notes.txt --by domain,position\n"
        "  lm eval --checkpoint runs/tiny --tasks blimp,piqa,questions.jsonl --tasks-data eval/\n"
        "  lm eval --checkpoint runs/tiny --tasks my_task --include-path harness_tasks/\n"
        "  lm eval --checkpoint runs/tiny --all-steps --out curve.svg\n"
        "  lm eval --compare runs/tiny/checkpoints/400 runs/tiny/checkpoints/600\n"
        "  lm eval --compare a/evals/600-params/piqa-0123abcd.jsonl b/evals/600-params/piqa-4567cdef.jsonl\n\n"
        "Windows never cross documents; each window after a document's first scores its last `stride` tokens.\n\n"
        "Tasks are read from local files (lm/evaluate/formats.py has the forms). Every item is kept in the run's evals/:\n"
        "Ctrl-C or SIGTERM ends with exit code 42, and the same command continues. With --include-path the tasks are\n"
        "lm-evaluation-harness's own YAML files, read from there, and nothing is kept."
    )


def run(args: argparse.Namespace) -> None:
    common.require_positive(args, "stride", "sequence_length", "batch_size", "max_tokens", "limit")
    by = eval_loss.asked_for(args.by)
    if args.compare and (args.all_steps or args.out):
        raise UsageError("--compare takes no --all-steps and no --out: it says which of two is better.")
    if args.out and not (args.all_steps and args.out.endswith(".svg")):
        raise UsageError(f"--out {args.out}: the curve of --all-steps, a file that ends in .svg.")
    if not args.tasks:
        eval_tasks.refuse_without_tasks(args)
    elif args.data or args.by:
        raise UsageError("--tasks takes no --data or --by: they are of text, and tasks are questions.")
    elif args.compare or args.all_steps:
        raise UsageError("--tasks goes with one checkpoint; --compare takes two files of items that it has kept.")
    if args.compare:
        eval_compare.run(args)
        return
    if not args.checkpoint:
        raise UsageError("give --checkpoint DIR, or --compare A B.")
    if args.tasks:
        eval_tasks.run(args)
        return
    if args.all_steps:
        eval_steps.run(args)
        return
    opened = open_checkpoint(args)
    text = eval_loss.text_of(args, opened)
    figures = eval_loss.score(opened, text, by)
    eval_loss.check(figures, eval_loss.data_of(args))

    result = {
        **figures,
        "data": eval_loss.named(eval_loss.data_of(args)),
        "stride": text.stride,
        "sequence_length": text.sequence_length,
        "step": opened.step,
        "weights": opened.weights,
        **({"averaged": opened.averaged} if opened.averaged else {}),
        "checkpoint": args.checkpoint,
    }
    if args.json:
        print(common.result_json(result))
        return
    print(f"bits per byte: {result['bits_per_byte']:.4f}")
    print(f"loss:          {result['loss']:.4f} nats per token")
    print(f"perplexity:    {result['perplexity']:.3f}")
    print(f"scored:        {result['tokens']} tokens, {result['bytes']} bytes of {' '.join(eval_loss.data_of(args))}")
    print(f"windows:       {text.sequence_length} tokens, stride {text.stride}; {opened.describe_weights()}")
    eval_loss.show(figures)
