"""Stages `evaluation sets` and `quality classifier`: what documents are compared with, made ready once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm import storage
from lm.config import to_dict
from lm.corpus.config import CorpusConfig, QualityConfig, SourceConfig
from lm.corpus.decontamination import build_index
from lm.corpus.part import Part
from lm.corpus.quality import train_classifier
from lm.corpus.read import version_of
from lm.corpus.readers import find_reader, input_files
from lm.corpus.record import SUFFIX, read_records
from lm.corpus.task import Report, Task
from lm.fields import build

CLASSIFIER = ".npz"
_READERS = (("jsonl", r"\.(?:jsonl|ndjson|json)(?:\.\w+)?$"), ("parquet", r"\.parquet$"), ("text", ""))  # by file name


def evaluation_task(work: str, config: CorpusConfig) -> Task | None:
    """Return the task that indexes the evaluation sets; None: there are none.

    Raises:
      UsageError: nothing is at a path.
    """
    if not config.decontamination.paths:
        return None
    files = input_files(SourceConfig(reader="", paths=config.decontamination.paths), "decontamination")
    arguments = {
        "paths": [file.path for file in files],
        "versions": [version_of(file.path) for file in files],
        "words": config.decontamination.words,
    }
    size = sum(file.size for file in files)
    return Task(storage.join(work, "references", "evaluation"), build_index, arguments, size=size)


def quality_task(work: str, config: CorpusConfig, parts: Sequence[Part]) -> Task | None:
    """Return the task that trains the quality classifier, on refined parts or on files; None: none is asked for.

    Raises:
      UsageError: nothing is at a path.
    """
    if not config.quality.good:
        return None
    arguments: dict[str, Any] = {"config": to_dict(config.quality), "seed": config.seed}
    inputs, size = [], 0
    for side in ("good", "ordinary"):
        named = getattr(config.quality, side)
        own = [part for part in parts if part.source in named]
        paths = tuple(path for path in named if path not in config.sources)
        files = input_files(SourceConfig(paths=paths), f"quality.{side}") if paths else []
        arguments[side] = {
            "parts": [part.prefix for part in own],
            "files": [file.path for file in files],
            "versions": [version_of(file.path) for file in files],
        }
        inputs += [part.key for part in own]
        size += sum(part.bytes for part in own) + sum(file.size for file in files)
    return Task(storage.join(work, "references", "quality"), train, arguments, tuple(inputs), size)


def train(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Train the classifier and write it to `out + CLASSIFIER`; returns what was measured on held-out documents."""
    read = 0

    def texts(side: str) -> Iterator[str]:
        nonlocal read
        for text in _texts(arguments[side]):
            read += len(text)
            report(read)
            yield text

    config = build(QualityConfig, arguments["config"], "quality.")
    classifier = train_classifier(texts("good"), texts("ordinary"), config, seed=arguments["seed"])
    classifier.save(out + CLASSIFIER)
    return classifier.about


def _texts(side: Mapping[str, Any]) -> Iterator[str]:
    for prefix in side["parts"]:
        yield from (record.text for record in read_records(prefix + SUFFIX))
    for path in side["files"]:
        reader = next(name for name, pattern in _READERS if re.search(pattern, path))
        source = SourceConfig(reader=reader, paths=(path,))
        yield from (record.text for record in find_reader(reader).read(path, source, lambda where, reason: None))
