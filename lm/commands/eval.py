"""`lm eval`: loss, perplexity and bits per byte of a checkpoint."""

import argparse

from lm.commands import common, eval_tasks
from lm.commands.opened import add_checkpoint_arguments, open_checkpoint
from lm.errors import UsageError

HELP = "Loss, perplexity and bits per byte of a checkpoint on a split of its data or on text files; tasks."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--data",
        default="validation",
        metavar="WHAT",
        help="train, validation or test of the run's own data, or a text file, folder or glob (default: validation; ./test is a file)",
    )
    parser.add_argument("--stride", type=int, help="new tokens per window (default: half the window)")
    parser.add_argument("--sequence-length", type=int, help="tokens per window (default: the training length)")
    parser.add_argument("--batch-size", type=int, help="windows at a time (default: the training batch)")
    parser.add_argument("--max-tokens", type=int, help="score windows until this many tokens are")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    eval_tasks.add_arguments(parser)
    parser.epilog = (
        "examples:\n  lm eval --checkpoint runs/tiny --data validation --stride 32\n"
        "  lm eval --checkpoint runs/tiny --tasks blimp,piqa,questions.jsonl --tasks-data eval/\n"
        "  lm eval --checkpoint runs/tiny --tasks my_task --include-path harness_tasks/\n\n"
        "Windows never cross documents; each window after a document's first scores its last `stride` tokens.\n\n"
        "Tasks are read from local files (lm/evaluate/formats.py has the forms). Every item is kept in the run's evals/:\n"
        "Ctrl-C or SIGTERM ends with exit code 42, and the same command continues. With --include-path the tasks are\n"
        "lm-evaluation-harness's own YAML files, read from there, and nothing is kept."
    )


def run(args: argparse.Namespace) -> None:
    common.require_positive(args, "stride", "sequence_length", "batch_size", "max_tokens", "limit")
    if args.tasks:
        eval_tasks.run(args)
        return
    eval_tasks.refuse_without_tasks(args)
    opened = open_checkpoint(args)
    config = opened.config
    length = args.sequence_length or config.data.sequence_length
    if config.model.positions == "learned" and length > config.model.max_positions:
        raise UsageError(f"--sequence-length {length}: the model has {config.model.max_positions} learned positions.")
    stride = args.stride or max(1, length // 2)
    if stride > length:
        raise UsageError(f"--stride {stride}: expected 1 to {length}, the window's length.")
    shards = opened.mesh.size
    batch_size = args.batch_size or config.data.batch_size
    if batch_size % shards:
        raise UsageError(f"--batch-size {batch_size}: expected a multiple of the {shards} devices.")

    from lm.data.windows import EvalBatches
    from lm.evaluate import LossEvaluator
    from lm.parallel.local import local_model
    from lm.train.metrics import to_json

    options = {"sequence_length": length, "batch_size": batch_size, "stride": stride, "max_tokens": args.max_tokens}
    if args.data in ("train", "validation", "test"):
        batches = EvalBatches.of_split(_own_data(opened), args.data, **options)
    else:
        batches = EvalBatches.of_texts(opened.tokenizer, _texts(args.data), **options)
    evaluator = LossEvaluator(local_model(opened.config, opened.mesh))
    show = common.progress_line("batches")
    figures = evaluator(opened.params, batches, progress=lambda done: show(done, len(batches)))
    if not figures["bytes"]:
        raise UsageError(f'"{args.data}" has no text to score.')
    result = {
        **figures,
        "data": args.data,
        "stride": stride,
        "sequence_length": length,
        "step": opened.step,
        "weights": opened.weights,
        **({"averaged": opened.averaged} if opened.averaged else {}),
        "checkpoint": args.checkpoint,
    }
    if args.json:
        print(to_json(result))
        return
    print(f"bits per byte: {result['bits_per_byte']:.4f}")
    print(f"loss:          {result['loss']:.4f} nats per token")
    print(f"perplexity:    {result['perplexity']:.3f}")
    print(f"scored:        {result['tokens']} tokens, {result['bytes']} bytes of {args.data}")
    print(f"windows:       {length} tokens, stride {stride}; {opened.describe_weights()}")


def _own_data(opened):
    """Open the run's own data, and check that it is what the run was trained on."""
    from lm.data.dataset import open_data
    from lm.data.prepare import prepare

    dataset = open_data(prepare(opened.config.data, progress=common.data_progress(common.note)))
    expected = opened.info["data"]["manifest_hash"]
    if dataset.hash != expected:
        raise UsageError(
            f"the run's data changed since it was trained (manifest {expected[:12]} then, {dataset.hash[:12]} now); "
            "restore it, or give a text file with --data."
        )
    return dataset


def _texts(pattern: str) -> list[str]:
    """Return the texts of a file, folder or glob."""
    from lm.config import DataConfig
    from lm.data.sources import find_source

    return [document.text for document in find_source("text")(DataConfig(source="text", path=pattern))]
