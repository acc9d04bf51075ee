"""A corpus with planted duplicates, and what runs its stages."""

import os
import random
from collections.abc import Callable, Sequence

from lm.corpus.config import CorpusConfig, DedupConfig, SourceConfig
from lm.corpus.dedup.stages import DedupResult, dedup
from lm.corpus.part import Part
from lm.corpus.record import SUFFIX, Record, read_records, write_records
from lm.corpus.task import Task

WORDS = [
    a + b + c
    for a in ("ka", "lo", "mi", "ru", "se")
    for b in ("ten", "dal", "por", "fix")
    for c in ("a", "o", "is", "em")
]


def prose(seed: int, words: int = 120) -> str:
    """Return text that shares no five words in a row with that of another seed, in all likelihood."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str, words: int, seed: int = 0) -> str:
    """Return text with so many words replaced, far from each other."""
    out = text.split()
    for number in range(words):
        out[(2 * number + 1) * len(out) // (2 * words)] = f"other{seed}x{number}"
    return " ".join(out)


def records(source: str, texts: Sequence[str], **metadata) -> list[Record]:
    return [Record(f"{source}:{n}", text, source, metadata=dict(metadata)) for n, text in enumerate(texts)]


def write_parts(folder, *contents: Sequence[Record]) -> list[Part]:
    """Write a part per list of records."""
    parts = []
    for index, some in enumerate(contents):
        prefix = os.path.join(folder, f"part-{index}")
        write_records(prefix + SUFFIX, some)
        size = sum(len(record.text.encode()) for record in some)
        parts.append(Part(prefix, some[0].source if some else "empty", f"key {index}", len(some), size))
    return parts


def run_in_order(stage: str, tasks: list[Task], order: Callable = list) -> list[dict]:
    """Do a stage's tasks, those that are not done, in an order of one's choice."""
    for task in tasks:
        os.makedirs(os.path.dirname(task.out), exist_ok=True)
    done = {task.out: task.result() or task.run() for task in order(tasks)}
    return [done[task.out] for task in tasks]


def deduplicate(
    folder, parts: Sequence[Part], run: Callable = run_in_order, code: Sequence[str] = ("code",), **options
) -> DedupResult:
    """Deduplicate parts; sources named in `code` do not ask for paragraphs."""
    sources = {part.source: SourceConfig(paragraphs=part.source not in code) for part in parts}
    config = CorpusConfig(sources=sources, dedup=DedupConfig(**({"partitions": 3} | options)))
    return dedup(os.fspath(folder), parts, config, run)


def kept(result: DedupResult) -> list[list[Record]]:
    return [list(read_records(part.path)) for part in result.parts]


def kept_ids(result: DedupResult) -> list[list[str]]:
    return [[record.id for record in some] for some in kept(result)]
