"""Stages `refine` and `score`: a part's documents one by one through a chain of steps."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm import storage
from lm.config import to_dict
from lm.corpus.clean import Clean
from lm.corpus.config import CorpusConfig, SourceConfig
from lm.corpus.decontamination import SUFFIX as INDEX
from lm.corpus.decontamination import Decontamination
from lm.corpus.filters import find_filters
from lm.corpus.language import Language
from lm.corpus.part import Part
from lm.corpus.perplexity import Perplexity
from lm.corpus.pii import Pii
from lm.corpus.quality import Classifier, Quality
from lm.corpus.read import version_of
from lm.corpus.readers import find_reader
from lm.corpus.record import SUFFIX, read_records, write_records
from lm.corpus.references import CLASSIFIER
from lm.corpus.tally import Tally
from lm.corpus.task import Report, Task
from lm.extensions import extension_hashes, load_extension
from lm.fields import build

_BATCH = 256  # records
_KINDS = {"web": "web", "code": "code"}  # of cleaning, by reader


def refine_tasks(work: str, config: CorpusConfig, parts: Sequence[Part], decontamination: Task | None) -> list[Task]:
    """Return a task per part: all steps that look at a document alone."""
    return [
        Task(
            storage.join(work, "refine", part.source, part.prefix.rpartition("/")[2]),
            refine,
            _about(config, part)
            | {
                "decontamination": decontamination.out + INDEX if decontamination else None,
                "max_overlap": config.decontamination.max_overlap,
            },
            inputs=(part.key, *([decontamination.key] if decontamination else [])),
            size=part.bytes,
        )
        for part in parts
    ]


def score_tasks(
    work: str, config: CorpusConfig, parts: Sequence[Part], classifier: Task | None, scorer: str | None
) -> list[Task]:
    """Return a task per part: quality, and perplexity where there is a checkpoint, which `scorer` opens."""
    about = {
        "classifier": classifier.out + CLASSIFIER if classifier else None,
        "checkpoint": config.perplexity_checkpoint,
        "version": version_of(config.perplexity_checkpoint) if config.perplexity_checkpoint else None,
        "scorer": scorer if config.perplexity_checkpoint else None,
    }
    return [
        Task(
            storage.join(work, "score", part.source, part.prefix.rpartition("/")[2]),
            score,
            _about(config, part) | about,
            inputs=(part.key, *([classifier.key] if classifier else [])),
            size=part.bytes,
        )
        for part in parts
    ]


def _about(config: CorpusConfig, part: Part) -> dict[str, Any]:
    source = to_dict(config.sources[part.source])
    for later in ("paths", "sha256", "domain", "paragraphs", "max_epochs"):  # changes nothing here
        del source[later]
    code = extension_hashes([source["reader"], *source["filters"]])
    return {"name": part.source, "part": part.prefix, "source": source, "code": code, "seed": config.seed}


def refine(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Take a part's documents through the reader's own steps, cleaning, language, filters and decontamination.

    Returns:
      the `lm.corpus.tally.Tally`'s stats.
    """
    source = build(SourceConfig, arguments["source"], "")
    steps = [*find_reader(source.reader).steps(source)]
    kind = _KINDS.get(source.reader, "prose") if source.clean == "auto" else source.clean
    if kind != "none":
        steps.append(Clean(kind))
    if source.languages:
        steps.append(Language(source.languages, source.language_score))
    steps += find_filters(source.filters, language=source.languages[0] if source.languages else "en")
    if arguments["decontamination"]:
        steps.append(Decontamination(arguments["decontamination"], arguments["max_overlap"]))
    if source.pii:
        steps.append(Pii())
    return _through(steps, arguments, out, report)


def score(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Score a part's documents and drop those that the source does not want; returns as `refine`."""
    source = build(SourceConfig, arguments["source"], "")
    steps = []
    if arguments["classifier"]:
        classifier = Classifier.load(arguments["classifier"])
        sampled = source.sample_by_quality
        steps.append(
            Quality(classifier, min_quality=source.min_quality, sample_by_quality=sampled, seed=arguments["seed"])
        )
    if arguments["checkpoint"]:
        score_texts = _scorer(arguments["scorer"], arguments["checkpoint"], arguments["version"])
        steps.append(Perplexity(score_texts, source.max_bits_per_byte))
    return _through(steps, arguments, out, report)


@functools.lru_cache(maxsize=1)  # a process opens and compiles it once
def _scorer(name: str, checkpoint: str, version: str | None) -> Callable[[list[str]], list[float]]:
    return load_extension("perplexity_checkpoint", name)(checkpoint)


def _through(steps: list, arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    tally, kept, done = Tally(arguments["seed"]), [], 0
    ahead = [step for step in steps if hasattr(step, "prepare")]  # a model scores documents in batches
    records = read_records(arguments["part"] + SUFFIX)
    while batch := list(itertools.islice(records, _BATCH)):
        for step in ahead:
            step.prepare(batch)
        for record in batch:
            done += len(record.text)
            report(done)
            if tally.run(steps, record) is not None:
                kept.append(record)
    write_records(out + SUFFIX, kept)
    return tally.stats()
