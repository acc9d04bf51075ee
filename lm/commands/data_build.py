"""`lm data build`: one source to shards, or a whole corpus from raw dumps."""

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

from lm import __version__, storage
from lm.commands import common
from lm.errors import Preempted, UsageError

SCORER = "lm.evaluate.document_scores:open_scorer"  # of documents by one of our checkpoints
_LINE_SECONDS = 10.0


def add_arguments(build: argparse.ArgumentParser) -> None:
    """Declare the action's arguments."""
    build.add_argument(
        "--config", required=True, metavar="FILE", help="an experiment (its data section is used), or a corpus"
    )
    build.add_argument("--out", required=True, metavar="DIR", help="a new folder, local or gs://, s3://")
    build.add_argument("--shard-tokens", type=int, metavar="N", help="tokens per shard, about (100,000,000)")
    build.add_argument("--json", action="store_true", help="print one JSON object")
    corpus = build.add_argument_group("of a corpus")
    corpus.add_argument(
        "--work", metavar="DIR", help="files between stages, of no use afterwards; all workers must see it (OUT/work)"
    )
    corpus.add_argument("--workers", type=int, metavar="N", help="processes (one per core)")
    corpus.add_argument("--executor", default="local", choices=("local", "ray"), help="where stages run (local)")
    corpus.add_argument("--ray-address", metavar="HOST:PORT", help="of the Ray cluster ($RAY_ADDRESS, or one here)")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any] | None]:
    """Build; returns where the shards are on this machine, or, of a corpus, its folder and its card."""
    if args.shard_tokens is not None and args.shard_tokens < 1:
        raise UsageError(f"--shard-tokens={args.shard_tokens}: expected at least 1.")
    if (config := corpus_config(args)) is not None:
        return args.out, _corpus(args, config)
    from lm.data.build import SHARD_TOKENS, build

    config = common.resolve_anywhere(common.load_config(args.config, args.overrides))
    progress = common.data_progress(common.note)
    return build(config.data, args.out, progress=progress, shard_tokens=args.shard_tokens or SHARD_TOKENS), None


def card_of(folder: str) -> dict[str, Any] | None:
    """Return the card of a corpus that was built here; None: the folder is another one.

    Raises:
      DamagedFileError: it cannot be read as JSON.
    """
    from lm.corpus.card import CARD

    path = storage.join(folder, CARD)
    return storage.read_object(path, "sources", "hash") if storage.exists(path) else None


def corpus_config(args: argparse.Namespace):
    """Return the `CorpusConfig` of the arguments; None: their config is an experiment's.

    Raises:
      UsageError, ConfigError: there is no such file, or something in it is wrong.
    """
    config_dict = common.call_in_file(args.config, "get_config", like="experiments/tiny.py")
    if not (hasattr(config_dict, "get") and "sources" in config_dict):
        return None
    from lm.config import apply_overrides
    from lm.corpus.config import CorpusConfig, resolve_corpus

    apply_overrides(config_dict, args.overrides, CorpusConfig)
    if args.shard_tokens:
        config_dict["shard_tokens"] = args.shard_tokens
    return resolve_corpus(config_dict)


def _corpus(args: argparse.Namespace, config) -> dict[str, Any]:
    from lm.corpus.build import WORK, build_corpus, check_folder
    from lm.report.data_card import card_page
    from lm.train.interrupts import Interrupts

    common.require_positive(args, "workers")
    if args.executor == "ray" and args.workers:
        raise UsageError("--workers is of --executor local; Ray uses all cores of its cluster.")
    if args.ray_address and args.executor != "ray":
        raise UsageError("--ray-address needs --executor ray.")
    out = _absolute(args.out)
    work = _absolute(args.work) if args.work else storage.join(out, WORK)
    check_folder(out, work)
    with Interrupts().installed(), _continues():
        storage.make_folder(out)
        storage.make_folder(work)
        with storage.locked(work, lambda: common.note("waiting for another build of this folder")):
            executor = _executor(args, [out, work])
            try:
                card = build_corpus(
                    config,
                    out,
                    work=work,
                    executor=executor,
                    name=os.path.splitext(os.path.basename(args.config))[0],
                    progress=StageLine(),
                    download=common.data_progress(common.note, ""),
                    version=__version__,
                    command=shlex.join(["lm", *args.arguments]),
                    scorer=SCORER,
                )
            finally:
                executor.close()
    page = storage.join(out, "card.html")
    storage.write_atomic(page, card_page(card))
    common.note(f"card: {page}")
    return card


def _absolute(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(path)


@contextlib.contextmanager
def _continues() -> Iterator[None]:
    """Say of a signal what it means here."""
    try:
        yield
    except Preempted as error:
        raise Preempted("stopped; what is done is kept, and the same command continues.") from error


def _executor(args: argparse.Namespace, folders: list[str]):
    if args.executor == "ray":
        from lm.corpus.on_ray import RayExecutor

        return RayExecutor(folders, args.ray_address)
    from lm.corpus.local import LocalExecutor

    return LocalExecutor(args.workers)


class StageLine:
    """Shows how far a stage is, with its rate and the time left: a line that changes, or one now and then."""

    def __init__(self):
        self._stage, self._start, self._last = "", 0.0, 0.0
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, stage: str, tasks: tuple[int, int], size: tuple[int, int]) -> None:
        now = time.monotonic()
        is_new, is_end = stage != self._stage, tasks[0] == tasks[1]
        if is_new:
            self._stage, self._start, self._last = stage, now, now
        if not is_end and now - self._last < (0.2 if self._is_terminal else _LINE_SECONDS):
            return
        self._last = now
        seconds, (done, total) = now - self._start, size
        text = f"{stage}: {tasks[0]:,} of {tasks[1]:,} tasks"
        if is_end:
            text += f", {total / 1e6:,.1f} MB" * bool(total) + f" in {seconds:.1f} s"
        elif done:
            text += f", {done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {done / 1e6 / seconds:,.1f} MB/s"
            text += f", {(total - done) * seconds / done:,.0f} s left"
        if self._is_terminal:
            print(f"\r{text}\x1b[K", end="\n" if is_end else "", file=sys.stderr, flush=True)
        else:
            common.note(text)
