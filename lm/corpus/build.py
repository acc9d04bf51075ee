"""A corpus built: stage after stage, from raw files to token shards, manifest and card."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import lm
from lm import storage
from lm.config import to_dict
from lm.corpus.card import build_card
from lm.corpus.config import CorpusConfig
from lm.corpus.dedup.stages import dedup
from lm.corpus.filters import find_filters
from lm.corpus.part import Part
from lm.corpus.read import parts_of, read_tasks
from lm.corpus.readers import find_reader
from lm.corpus.refine import evaluation_task, quality_task, refine_tasks, refined, score_tasks
from lm.corpus.shards import shard_tasks, tokenizer_task
from lm.corpus.stage import Executor, Progress, Stages
from lm.data.build import assemble_manifest
from lm.data.dataset import MANIFEST, TOKENIZER
from lm.data.mixture import domain_weights
from lm.errors import UsageError
from lm.tokenizer import load_tokenizer

CARD = "card.json"


def identity(config: CorpusConfig) -> str:
    """Return a hash of what the config says."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def build_corpus(
    config: CorpusConfig,
    out: str,
    *,
    executor: Executor,
    work: str | None = None,
    progress: Progress | None = None,
    cache: str | None = None,
    command: str = "",
    scorer: str | None = None,
) -> dict[str, Any]:
    """Build a corpus into a folder that `lm.data.dataset.open_data` opens, and return its card.

    What is done is not done again: broken off anywhere, the same call continues, and its files are the same bytes as
    those of an undisturbed one, whatever the executor.

    Args:
      config: what to build.
      out: the folder, local or on an object store; the manifest is its last file but for the card's page.
      executor: of the stages' tasks.
      work: where the files between stages are; None: `out`/work. All workers must see both.
      progress: told how far each stage has come.
      cache: for what is downloaded.
      command: that does this, for the card.
      scorer: "package.module:Name" that opens `config.perplexity_checkpoint`; handed in, since it needs a model.

    Raises:
      ConfigError, UsageError: something named in the config does not exist, or the folder holds another corpus.
      LmError: tasks failed; all others are done.
    """
    _check(config)
    if (found := finished(config, out)) is not None:
        return found
    storage.make_folder(out)
    work = work or storage.join(out, "work")
    stages = Stages(executor, progress)

    by_source = read_tasks(work, config, cache)
    tasks = list(itertools.chain.from_iterable(by_source.values()))
    read = stages.run("read", tasks)
    parts = parts_of(tasks, read)

    evaluations = evaluation_task(work, config)
    if evaluations:
        stages.run("evaluation sets", [evaluations])
    refine = refine_tasks(work, config, parts, evaluations)
    tallies = stages.run("refine", refine)
    parts = refined(refine, parts, tallies)

    scores, quality = None, None
    if config.quality.good or config.perplexity_checkpoint:
        classifier = quality_task(work, config, parts)
        if classifier:
            (quality,) = stages.run("quality classifier", [classifier])
        score = score_tasks(work, config, parts, classifier, scorer)
        scores = stages.run("score", score)
        parts = refined(score, parts, scores)

    duplicates = dedup(work, parts, config, stages.run)
    parts = duplicates.parts

    tokenizer = tokenizer_task(out, work, config, parts)
    stages.run("tokenizer", [tokenizer])
    shards = shard_tasks(out, work, config, parts, tokenizer)
    written = stages.run("tokenize", shards)
    manifest = _manifest(config, out, shards, written)
    card = build_card(
        config=to_dict(config),
        command=command,
        version=lm.__version__,
        manifest=manifest,
        seconds=stages.seconds,
        read=[(task.arguments, result) for task, result in zip(tasks, read, strict=True)],
        refine=_by_source(refine, tallies),
        score=_by_source(score, scores) if scores else {},
        duplicates=duplicates,
        tokens=_tokens(shards, written),
        quality=quality,
    )
    storage.write_atomic(storage.join(out, CARD), json.dumps(card, ensure_ascii=False, indent=1) + "\n")
    storage.write_atomic(storage.join(out, MANIFEST), json.dumps(manifest, indent=1) + "\n")
    return card
