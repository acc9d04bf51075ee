"""`lm eval --compare A B`: two checkpoints on the same text, or two files of the same questions: which is better?"""

import argparse
import os
import re
from typing import Any

import numpy as np

from lm.checkpoint.run_folder import locate, read_run_info
from lm.commands import common, eval_loss
from lm.commands.opened import open_run
from lm.errors import LmError, UsageError
from lm.storage import exists, is_remote, join, list_names

_FEWEST_DOCUMENTS = 30  # below, windows are compared
_MOST_BLOCKS = 100
_METRICS = ("correct", "correct_norm")
_OF_LOSSES = ("data", "stride", "sequence_length", "batch_size", "max_tokens", "weights")


def run(args: argparse.Namespace) -> None:
    if args.checkpoint or args.step is not None or args.average or args.by:
        raise UsageError("--compare takes no --checkpoint, --step, --average or --by; A and B say which checkpoints.")
    tasks = [_items(path) for path in args.compare]
    if any(tasks) and not all(tasks):
        raise UsageError("--compare: both must be runs (or steps of runs), or both files of items.")
    if all(tasks) and (given := [name for name in _OF_LOSSES if getattr(args, name)]):
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to runs; files of items are compared as they are.")
    rows = _compare_tasks(*tasks) if all(tasks) else [_compare_losses(args)]
    if args.json:
        print(common.result_json({"compared": rows, "a": args.compare[0], "b": args.compare[1]}))
        return
    for row in rows:
        print(f"{row['of']}: A {row['a']:.4f}, B {row['b']:.4f} {row['unit']}")
        print(row["verdict"])
    if len(rows) > 1:
        print(f"{len(rows)} comparisons: by chance alone {0.05 * len(rows):.2g} of as many would show a difference")


def _row(comparison, of: str, unit: str, items: str, *, higher_is_better: bool) -> dict[str, Any]:
    return {
        "of": of,
        "unit": unit,
        **{name: getattr(comparison, name) for name in ("a", "b", "difference", "low", "high", "p")},
        "items": comparison.items,
        "item": items,
        "differing": comparison.differing,
        "better": comparison.better(higher_is_better),
        "verdict": comparison.verdict(unit, items, higher_is_better=higher_is_better),
    }


def _compare_losses(args: argparse.Namespace) -> dict[str, Any]:
    """Compare bits per byte, by document, or in few documents by blocks of windows."""
    from lm.evaluate.breakdown import break_down
    from lm.evaluate.compare import compare

    runs = [locate(path)[0] for path in args.compare]
    shortest = min(read_run_info(run)["config"]["data"]["sequence_length"] for run in runs)  # windows alike
    parts, tokenizers = [], []
    for path in args.compare:
        opened = open_run(path, weights=args.weights)
        text = eval_loss.text_of(args, opened, shortest)
        show = common.progress_line(f"{path}, batches")
        progress = lambda done, show=show, text=text: show(done, len(text.batches))  # noqa: E731
        parts.append(break_down(opened.evaluator, opened.params, text.batches, progress))
        eval_loss.check(parts[-1].total(), eval_loss.data_of(args))
        tokenizers.append(opened.tokenizer.sha256)
        del opened  # one model at a time
    for path, part in zip(args.compare, parts, strict=True):
        if not np.isfinite(part.documents[:, 0]).all():
            raise LmError(f'"{path}" cannot be compared: its loss is not finite.')
    (a, b), data = parts, " ".join(eval_loss.data_of(args))
    if len(a.documents) != len(b.documents):
        raise UsageError(
            f"A and B did not score the same documents of {data} ({len(a.documents)} and {len(b.documents)}); "
            "give a text file with --data."
        )
    scored = a.documents[:, 2] > 0
    same_windows = tokenizers[0] == tokenizers[1] and np.array_equal(a.windows[:, 1:], b.windows[:, 1:])
    if scored.sum() >= _FEWEST_DOCUMENTS or not same_windows:
        item, sums = "documents", [part.documents[scored] for part in parts]
        if not np.array_equal(a.documents[:, 2], b.documents[:, 2]):
            raise UsageError(f"A and B did not score the same bytes of {data}; give a text file with --data.")
    else:
        item, sums = _blocks(a.windows, b.windows)
    if len(sums[0]) < 2:
        why = "one window" if same_windows else "one document, cut otherwise by A and B"
        raise UsageError(f"{data} is {why}: there is nothing to compare chance by; give more text with --data.")
    nats_to_bits = 1 / np.log(2)
    result = compare(sums[0][:, 0] * nats_to_bits, sums[1][:, 0] * nats_to_bits, sums[0][:, 2])
    return _row(result, data, "bits per byte", item, higher_is_better=False)


def _blocks(*windows: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """Join consecutive windows: neighbours are alike, and items must not be."""
    count = len(windows[0])
    size = -(-count // _MOST_BLOCKS)
    starts = np.arange(0, count, size)
    name = "windows" if size == 1 else f"blocks of {size} windows"
    return name, [np.add.reduceat(part, starts, axis=0) for part in windows]


def _items(path: str) -> dict[str, list[str]]:
    """Return name -> items files: of a file `x.jsonl`, or of a folder that holds some (`run/evals/400-params`)."""
    if path.endswith(".jsonl"):
        return {_task_name(path): [path]}
    if exists(join(path, "config.json")):  # a run, which has its metrics in such a file
        return {}
    names = [name for name in list_names(path) if name.endswith(".jsonl")]
    if is_remote(path):  # a file is numbered parts there
        names = list(dict.fromkeys(re.sub(r"\.\d{8}(?=\.jsonl$)", "", name) for name in names))
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(_task_name(name), []).append(join(path, name))
    return files


def _task_name(path: str) -> str:
    """Return a task's name: its file's without the digest of what was asked and of which run."""
    stem = os.path.basename(path).removesuffix(".jsonl")
    head, _, digest = stem.rpartition("-")
    return head if head and len(digest) == 8 and all(letter in "0123456789abcdef" for letter in digest) else stem


def _compare_tasks(a: dict[str, list[str]], b: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Compare every task that both have; where each has one file, those two, whatever they are called."""
    if len(a) == len(b) == 1:
        pairs = {next(iter(a)): (*a.values(), *b.values())}
    else:
        pairs = {name: (a[name], b[name]) for name in a if name in b}
    if not pairs:
        raise UsageError(f"--compare: no task is in both; A has {', '.join(a)}, B has {', '.join(b)}.")
    return [row for name, files in pairs.items() for row in _compare_task(name, [_only(name, own) for own in files])]


def _compare_task(name: str, paths: list[str]) -> list[dict[str, Any]]:
    """Compare two items files of a task: accuracies, and what the right answers cost."""
    from lm.evaluate.compare import compare

    first, second = map(_read, paths)
    if set(first) != set(second):
        raise UsageError(
            f"{name}: A and B did not answer the same questions ({len(first)} and {len(second)}, "
            f"{len(set(first) & set(second))} in both)."
        )
    if len(first) < 2:
        raise UsageError(f"{name}: {len(first)} questions; at least 2 are needed.")
    pairs = [[records[id_] for id_ in first] for records in (first, second)]
    for own, other in zip(*pairs, strict=True):
        if any(own.get(field) != other.get(field) for field in ("gold", "gold_bytes")):
            raise UsageError(f"{name}: question {own['id']} has another right answer in B: these are two tasks.")
    rows = []
    for metric in _METRICS:
        if all(metric in record for records in pairs for record in records):
            values = [[float(record[metric]) for record in records] for records in pairs]
            label = name + metric.removeprefix("correct").replace("_", ", ")
            rows.append(_row(compare(*values), label, "accuracy", "questions", higher_is_better=True))
    if all("gold_bytes" in record for records in pairs for record in records):  # says more than right or wrong
        bits = [[-record["loglikelihoods"][record["gold"]] / np.log(2) for record in records] for records in pairs]
        for path, own in zip(paths, bits, strict=True):
            if not np.isfinite(own).all():
                raise LmError(f'"{path}" cannot be compared: it has scores that are not finite.')
        result = compare(*bits, [record["gold_bytes"] for record in pairs[0]])
        rows.append(_row(result, name, "bits per byte of the right answers", "questions", higher_is_better=False))
    if not rows:
        raise UsageError(f"{name}: the items have no {' or '.join(_METRICS)}.")
    return rows


def _only(name: str, files: list[str]) -> str:
    """Return a task's items file.

    Raises:
      UsageError: there are several.
    """
    if len(files) > 1:
        names = " and ".join(os.path.basename(path) for path in files[:2])
        raise UsageError(f"{name}: {names} in one folder were asked otherwise, or of another save; give the file.")
    return files[0]


def _read(path: str) -> dict[str, Any]:
    """Return the records of an items file by their id."""
    from lm.evaluate.records import read_items

    records = read_items(path)
    if not records:
        raise UsageError(f'"{path}" has no items, or is no file.')
    return records
