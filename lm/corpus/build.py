"""A corpus built: stage after stage, from raw files to token shards, manifest and card."""

import datetime
import hashlib
import json
import os
import re
from typing import Any

from lm import storage
from lm.config import to_dict
from lm.corpus import results
from lm.corpus.card import CARD, build_card
from lm.corpus.config import CorpusConfig
from lm.corpus.dedup.stages import dedup
from lm.corpus.filters import find_filters
from lm.corpus.language import Language
from lm.corpus.part import parts_after
from lm.corpus.read import parts_of, read_tasks, version_of
from lm.corpus.readers import find_reader
from lm.corpus.references import evaluation_task, quality_task
from lm.corpus.refine import refine_tasks, score_tasks
from lm.corpus.shards import shard_tasks, tokenizer_task
from lm.corpus.stage import Executor, Progress, Stages
from lm.corpus.task import Task
from lm.data.build import assemble_manifest
from lm.data.dataset import MANIFEST, TOKENIZER, TOKENIZER_ABOUT, read_manifest
from lm.data.document import Progress as DownloadProgress
from lm.errors import UsageError
from lm.tokenizer import load_tokenizer
from lm.tokenizer.files import tokenizer_identity

WORK = "work"  # the folder between stages, unless it is elsewhere
_SHARD = re.compile(r".+-(?:train|validation|test)-\d{5}\.(?:bin|ends|docs)")
_OURS = re.compile(
    rf"work|tokenizer\.(?:tiktoken|json)|manifest\.json|card\.(?:json|html)|{_SHARD.pattern}|.+\.tmp|\.write-.+"
)


def build_corpus(
    config: CorpusConfig,
    out: str,
    *,
    executor: Executor,
    work: str,
    name: str = "corpus",
    command: str = "",
    version: str = "",
    progress: Progress | None = None,
    download: DownloadProgress | None = None,
    scorer: str | None = None,
) -> dict[str, Any]:
    """Build a corpus into a folder that `lm.data.dataset.open_data` opens, and return its card.

    What is done is not done again: broken off anywhere, the same call continues, and its files are the same bytes as
    those of an undisturbed one, whatever the executor.

    Args:
      config: what to build.
      out: the folder, local or on an object store; the manifest is its last file.
      executor: of the stages' tasks.
      work: the folder of the files between stages. All workers must see both.
      name, command, version (of lm): for the card.
      progress: told how far each stage has come.
      download: told how far a download has come.
      scorer: "package.module:Name" that opens `config.perplexity_checkpoint`; handed in, since it needs a model.

    Raises:
      ConfigError, UsageError: something named in the config does not exist, or the folder holds another corpus.
      LmError: tasks failed; all others are done.
    """
    for source in config.sources.values():  # what is misspelled or missing is found before the work
        find_reader(source.reader).steps(source)
        find_filters(source.filters)
        if source.languages:
            Language(source.languages)
    if config.tokenizer != "train":
        tokenizer_identity(config.tokenizer)
    read, evaluations = read_tasks(work, config, download), evaluation_task(work, config)
    references = [evaluations, quality_task(work, config, [])]
    model = version_of(config.perplexity_checkpoint) if config.perplexity_checkpoint else None
    identity = _identity(config, [task.key for task in (*read, *references) if task], model)
    if (card := _finished(identity, out)) is not None:
        return card
    storage.make_folder(out)
    stages = Stages(executor, progress)

    read_stats = stages.run("read", read)
    parts = parts_of(read, read_stats)  # raises if a source has nothing

    indexed = stages.run("evaluation sets", [evaluations]) if evaluations else []
    refine = refine_tasks(work, config, parts, evaluations)
    tallied = [_zip(refine, stages.run("refine", refine))]
    parts = parts_after(parts, tallied[-1])

    quality = None
    if config.quality.good or config.perplexity_checkpoint:
        classifier = quality_task(work, config, parts)
        if classifier:
            (quality,) = stages.run("quality classifier", [classifier])
        score = score_tasks(work, config, parts, classifier, scorer)
        tallied.append(_zip(score, stages.run("score", score)))
        parts = parts_after(parts, tallied[-1])

    deduplicated = dedup(work, parts, config, stages.run)
    tallied.append(deduplicated.kept)
    parts = deduplicated.parts

    if not any(part.documents for part in parts):
        raise UsageError(f'no document is left of any source: look at the stats in "{work}/refine" for the rules.')
    tokenizer = tokenizer_task(out, work, config, parts)
    shards = shard_tasks(out, work, config, parts, tokenizer)
    _forget_lost(out, tokenizer, shards)
    stages.run("tokenizer", [tokenizer])
    written = _zip(shards, stages.run("tokenize", shards))
    _remove_others(out, results.entries_of(written))

    tokens = results.tokens_by("domain", written, ["train"])
    mixture = results.mixture_of(config, tokens)
    encoder = load_tokenizer(storage.join(out, TOKENIZER))
    manifest = assemble_manifest(
        results.entries_of(written),
        tokenizer=encoder,
        source={"name": "corpus", "path": None, "identity": identity},
        fractions=(config.validation_fraction, config.test_fraction),
        mixture=mixture,
    )
    card = build_card(
        name=name,
        command=command,
        lm_version=version,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=to_dict(config),
        content_hash=manifest["hash"],
        seconds=stages.seconds,
        tokenizer=manifest["tokenizer"],
        splits=manifest["splits"],
        mixture=results.mixture_card(config, mixture, tokens),
        sources=results.source_cards(
            config, _zip(read, read_stats), tallied, results.tokens_by("source", written, manifest["splits"])
        ),
        outputs=results.output_files(manifest),
        rules=results.rules(),
        duplicates=deduplicated.about,
        decontamination=results.decontamination_card(config, indexed[0]["sets"], tallied[0]) if indexed else None,
        quality_classifier=quality,
        count_tokens=lambda text: len(encoder.encode(text)),
    )
    storage.write_atomic(storage.join(out, CARD), json.dumps(card, ensure_ascii=False, indent=1) + "\n")
    storage.write_atomic(storage.join(out, MANIFEST), json.dumps(manifest, indent=1) + "\n")
    return card


def check_folder(out: str, work: str) -> None:
    """Refuse a folder in which something is that no build of a corpus, with this work folder, leaves there.

    Raises:
      UsageError: so it is.
    """
    inside = work.removeprefix(out).strip("/").partition("/")[0]
    foreign = [name for name in storage.list_names(out) if name != inside and not _OURS.fullmatch(name)]
    if foreign:
        raise UsageError(
            f'"{out}" is not empty, and no corpus: it holds {", ".join(foreign[:3])}. Choose a new folder.'
        )


def _zip(tasks, stats) -> results.Results:
    return list(zip(tasks, stats, strict=True))


def _identity(config: CorpusConfig, *files: Any) -> str:
    """Return a hash of what the config says and of the versions of the files that it means."""
    about = [to_dict(config), files]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _forget_lost(out: str, tokenizer: Task, shards: list[Task]) -> None:
    """Have what is done but no longer in the folder done again."""
    names = set(storage.list_names(out))
    if not {TOKENIZER, TOKENIZER_ABOUT} <= names:
        storage.remove(tokenizer.out + ".json")
    for task in shards:
        entries = (task.result() or {"entries": {}})["entries"]
        if any(entry["file"] not in names for some in entries.values() for entry in some):
            storage.remove(task.out + ".json")


def _remove_others(out: str, entries: dict[str, list[dict[str, Any]]]) -> None:
    """Remove shards that an earlier config left behind."""
    known = {os.path.splitext(entry["file"])[0] for some in entries.values() for entry in some}
    for name in storage.list_names(out):
        if _SHARD.fullmatch(name) and os.path.splitext(name)[0] not in known:
            storage.remove(storage.join(out, name))


def _finished(identity: str, out: str) -> dict[str, Any] | None:
    """Return the card of a folder whose corpus is built.

    Raises:
      UsageError: the folder holds another corpus, or something else.
    """
    if MANIFEST not in storage.list_names(out):
        return None
    if read_manifest(out)["source"].get("identity") != identity:
        raise UsageError(
            f'"{out}" holds other data, or this corpus as another config or other input files made it. Choose a new folder.'
        )
    return storage.read_object(storage.join(out, CARD))
