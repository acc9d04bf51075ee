"""What `lm eval` scores the loss on, and how the figures are shown; shared by one checkpoint, two, and all of a run."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from lm.commands import common
from lm.commands.opened import OpenedRun
from lm.errors import UsageError

BREAKDOWNS = ("domain", "position")
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Text:
    """The text to score, in windows.

    Attributes:
      batches: `lm.data.windows.EvalBatches`.
      domains: of each document: the split, or the file.
      sequence_length, stride: of the windows.
    """

    batches: Any
    domains: list[str]
    sequence_length: int
    stride: int


def asked_for(by: str | None) -> list[str]:
    """Return the breakdowns of `--by`.

    Raises:
      UsageError: one that there is not.
    """
    names = [name.strip() for name in (by or "").split(",") if name.strip()]
    for name in names:
        if name not in BREAKDOWNS:
            raise UsageError(f"--by {name}: expected {' or '.join(BREAKDOWNS)}, or both separated by a comma.")
    return names


def text_of(args: argparse.Namespace, opened: OpenedRun, longest: int | None = None) -> Text:
    """Cut what `--data` names into windows.

    Args:
      args: `data`, `sequence_length`, `stride`, `batch_size`, `max_tokens`.
      opened: the run, whose tokenizer and data it is.
      longest: tokens per window at most, unless `--sequence-length` says otherwise; None: the training length.

    Raises:
      UsageError: no such data, no text, or windows that do not fit the model or the devices.
    """
    model, data = opened.config.model, opened.config.data
    length = args.sequence_length or min(data.sequence_length, longest or data.sequence_length)
    if model.positions == "learned" and length > model.max_positions:
        raise UsageError(f"--sequence-length {length}: the model has {model.max_positions} learned positions.")
    stride = args.stride or max(1, length // 2)
    if stride > length:
        raise UsageError(f"--stride {stride}: expected 1 to {length}, the window's length.")
    batch_size, devices = args.batch_size or data.batch_size, opened.mesh.size
    if batch_size % devices:
        raise UsageError(f"--batch-size {batch_size}: expected a multiple of the {devices} devices.")

    from lm.data.windows import EvalBatches

    shards, domains = [], []
    for name in data_of(args):
        if name in SPLITS:
            own = _own_data(opened).shards(name)
            shards += own
            domains += [name] * sum(len(shard.ends) for shard in own)
        else:
            shard, files = _texts(opened, name)
            shards.append(shard)
            domains += files
    options = {"sequence_length": length, "batch_size": batch_size, "stride": stride, "max_tokens": args.max_tokens}
    batches = EvalBatches(shards, opened.tokenizer.token_bytes, **options)
    return Text(batches, domains, length, stride)


def data_of(args: argparse.Namespace) -> list[str]:
    """Return what `--data` names: the validation split where it is not given."""
    return args.data or ["validation"]


def named(data: Sequence[str]) -> str | list[str]:
    """Return `--data` as the results say it."""
    return data[0] if len(data) == 1 else list(data)


def check(figures: dict[str, Any], data: Sequence[str]) -> None:
    """Refuse figures of nothing."""
    if not figures["bytes"]:
        raise UsageError(f'"{" ".join(data)}" has no text to score.')


def score(opened: OpenedRun, text: Text, by: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a text, with `by_domain` and `by_position` where asked for."""
    from lm.evaluate.breakdown import break_down

    show = common.progress_line("batches")
    progress = lambda done: show(done, len(text.batches))  # noqa: E731
    if not by:
        return opened.evaluator(opened.params, text.batches, progress)
    parts = break_down(opened.evaluator, opened.params, text.batches, progress)
    figures = parts.total()
    if "domain" in by:
        figures["by_domain"] = parts.by_domain(text.domains)
    if "position" in by:
        figures["by_position"] = parts.by_position()
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print the tables of the breakdowns."""
    rows = [(name, own) for name, own in figures.get("by_domain", {}).items()]
    if rows:
        _table("domain", rows)
    if positions := figures.get("by_position"):
        _table("position", [(f"{own['first']} to {own['last']}", own) for own in positions])


def _table(title: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    width = max(len(title), *(len(name) for name, _ in rows)) + 2
    print(f"\n{title:<{width}}{'bits/byte':>10}{'loss':>9}{'tokens':>12}")
    for name, own in rows:
        bits, loss = (f"{own[key]:.4f}" if own[key] is not None else "-" for key in ("bits_per_byte", "loss"))
        print(f"{name:<{width}}{bits:>10}{loss:>9}{own['tokens']:>12,}")


def _own_data(opened: OpenedRun):
    """Open the run's own data, and check that it is what the run was trained on."""
    from lm.data.dataset import open_data
    from lm.data.prepare import prepare

    dataset = open_data(
        prepare(opened.config.data, progress=common.data_progress(common.note)), opened.config.data.verify
    )
    expected = opened.info["data"]["manifest_hash"]
    if dataset.hash != expected:
        raise UsageError(
            f"the run's data changed since it was trained (manifest {expected[:12]} then, {dataset.hash[:12]} now); "
            "restore it, or give a text file with --data."
        )
    return dataset


def _texts(opened: OpenedRun, pattern: str):
    """Return the texts of a file, folder or glob as a shard, and the name of each document's file."""
    import os

    from lm.config import DataConfig
    from lm.data.shards import Shard
    from lm.data.sources import find_source

    documents = list(find_source("text")(DataConfig(source="text", path=pattern)))
    names = [pattern] if os.path.isfile(pattern) else [document.id for document in documents]
    encoded = [opened.tokenizer.encode_document(document.text) for document in documents]
    return Shard.from_documents(encoded, opened.tokenizer.eot_id), names
