"""What a corpus is made of and how: the config that `lm data build` reads from `experiments/data/*.py`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from lm.config import to_dict
from lm.errors import ConfigError, did_you_mean
from lm.fields import build, option, unknown_field

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")

READERS = {  # the built-in readers, and what a source's paths are to each
    "wikipedia": "MediaWiki XML dumps (.xml, .xml.bz2, multistream)",
    "books": "plain-text books, Project Gutenberg's wrapping known",
    "web": "web crawls: WARC or WET files",
    "code": "folders of source code, git checkouts, tarballs",
    "text": "text files, a document per file",
    "jsonl": "JSON lines, compressed or not",
    "parquet": "parquet files",
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where documents of one kind come from and what is asked of them."""

    reader: str = option("text")  # a name in READERS above, or "package.module:Name"
    paths: tuple[str, ...] = option(())  # files, folders, globs, http(s) or any fsspec URLs
    sha256: tuple[str, ...] = option(())  # of the paths' files, in their order; (): not checked
    domain: str | None = option(None)  # what it is mixed as; None: its own name
    license: str | None = option(None)  # of documents whose own is not known
    text_key: str = option("text")  # field or column that holds the text (jsonl, parquet)
    namespaces: tuple[int, ...] = option((0,), ge=0)  # of wiki pages; 0: articles
    licenses: tuple[str, ...] = option(())  # SPDX names that code may be under; (): any, and none
    clean: str = option("auto", choices=("auto", "prose", "web", "code", "none"))  # how; auto: as its reader suggests
    pii: bool = option(False)  # replace e-mail addresses, IP addresses and phone numbers
    languages: tuple[str, ...] = option(())  # ISO 639-1 codes kept; (): language is not looked at
    language_score: float = option(0.65, ge=0, le=1)  # probability that the language found must have
    filters: tuple[str, ...] = option(())  # names in lm.corpus.filters.FILTERS, in the order in which they are asked
    min_quality: float | None = option(None, ge=0, le=1)  # classifier's probability of "good" to keep; None: keep all
    sample_by_quality: bool = option(False)  # keep with that probability instead of a threshold
    max_bits_per_byte: float | None = option(None, gt=0)  # by `perplexity_checkpoint`; None: any
    paragraphs: bool = option(True)  # drop paragraphs that stand elsewhere too (never of code)
    max_epochs: float | None = option(None, gt=0)  # times that a run may see its domain; None: any number


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """The classifier of good text against ordinary text: hashed n-grams, logistic."""

    good: tuple[str, ...] = option(())  # text files, folders or globs, or names of sources; (): no classifier
    ordinary: tuple[str, ...] = option(())  # the same
    held_out: float = option(0.2, gt=0, lt=1)  # share of documents whose AUC is reported
    buckets: int = option(2**18, ge=2**10)  # hashed n-grams


@dataclasses.dataclass(frozen=True)
class DedupConfig:
    """Exact and near duplicates, over all sources."""

    exact: bool = option(True)  # documents of the same normalized text
    paragraphs: bool = option(True)  # paragraphs of the same text, in sources that ask for it
    paragraph_characters: int = option(200, ge=1)  # shorter ones may repeat
    near: bool = option(True)  # MinHash LSH, verified by exact Jaccard
    threshold: float = option(0.8, gt=0, le=1)  # Jaccard similarity of shingles at which two documents are one
    shingle_words: int = option(5, ge=1)  # words per shingle
    bands: int = option(20, ge=1)  # buckets that a document falls in; candidates are verified, so recall is cheap:
    rows: int = option(6, ge=1)  # hashes per bucket; 20 x 6 misses 0.2 % of pairs at 0.8, FineWeb's 14 x 8 7.6 %
    partitions: int = option(4, ge=1)  # of the shuffle, at least: more are made where one would hold over 400 MB


@dataclasses.dataclass(frozen=True)
class DecontaminationConfig:
    """Documents that hold pieces of evaluation sets are dropped."""

    paths: tuple[str, ...] = option(())  # evaluation sets: files of text or JSON lines, folders of such; (): none
    words: int = option(13, ge=1)  # n-gram length
    max_overlap: float = option(0.0, ge=0, lt=1)  # share of a document's n-grams allowed to be there


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """A corpus: its sources by name, and what is done to all of them."""

    seed: int = option(0, ge=0, lt=2**32)  # sampling by quality, samples on the card
    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    quality: QualityConfig = QualityConfig()
    dedup: DedupConfig = DedupConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    perplexity_checkpoint: str | None = option(None)  # a run of ours, whose model scores documents; None: no perplexity
    weighting: str = option("proportional", choices=("proportional", "temperature", "fixed"))  # of domains
    temperature: float = option(1.0, gt=0)  # weights are proportional to tokens^(1/temperature)
    weights: tuple[tuple[str, float], ...] = option((), ge=0)  # (domain, weight), where weighting is fixed
    tokenizer: str = option("train")  # a tiktoken name, a file, or `train`
    tokenizer_vocab_size: int = option(4096, ge=257)  # as in lm.config.DataConfig
    tokenizer_pattern: str = option("gpt4", choices=("gpt2", "gpt4"))  # the same
    validation_fraction: float = option(0.01, ge=0, lt=1)  # of documents, by hash
    test_fraction: float = option(0.0, ge=0, lt=1)  # the same
    part_bytes: int = option(16 * 2**20, ge=1024)  # text per file between stages: a task's work and memory
    shard_tokens: int = option(100_000_000, ge=1)  # per shard, about
    damaged: str = option("fail", choices=("fail", "keep"))  # an input: an error, or keep what came before the damage


def default():
    """Return all fields at their defaults as a ConfigDict, to which sources are added: `config.sources.wiki = source(…)`."""
    from ml_collections import ConfigDict

    config = ConfigDict(to_dict(CorpusConfig()), type_safe=False, convert_dict=True).lock()
    config.sources.unlock()
    return config


def source(**fields: Any):
    """Return a source, the fields of `SourceConfig` that are not given at their defaults."""
    from ml_collections import ConfigDict

    known = to_dict(SourceConfig())
    if unknown := set(fields) - set(known):
        raise unknown_field("sources", min(unknown), known)
    return ConfigDict(known | fields, type_safe=False).lock()


def resolve_corpus(config_dict: Mapping) -> CorpusConfig:
    """Validate plain data into a `CorpusConfig`.

    Raises:
      ConfigError: names the field's path, the value and what is accepted.
    """
    config = build(CorpusConfig, config_dict.to_dict() if hasattr(config_dict, "to_dict") else config_dict, "")
    if not config.sources:
        raise ConfigError("config.sources is empty: name at least one source of documents.")
    if bool(config.quality.good) != bool(config.quality.ordinary):
        raise ConfigError("config.quality needs both, good and ordinary text.")
    for name, one in config.sources.items():
        _check_source(
            name, one, has_quality=bool(config.quality.good), has_model=config.perplexity_checkpoint is not None
        )
    if (config.weighting == "fixed") != bool(config.weights):
        raise ConfigError('config.weights belongs to config.weighting="fixed", and to nothing else.')
    domains = {one.domain or name for name, one in config.sources.items()}
    if config.weights and not any(weight for _, weight in config.weights):
        raise ConfigError(f"config.weights={config.weights!r}: expected a weight above 0.")
    for domain, _ in config.weights:
        if domain not in domains:
            raise ConfigError(
                f"config.weights names {domain!r}, which is no source's domain.{did_you_mean(domain, domains)}"
            )
    return config


def _check_source(name: str, one: SourceConfig, *, has_quality: bool, has_model: bool) -> None:
    where = f"config.sources.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a source's name is made of letters, digits, _ and -, for it names files.")
    if not _NAME.fullmatch(one.domain or name):
        raise ConfigError(f"{where}.domain={one.domain!r}: expected letters, digits, _ and -.")
    if not one.paths:
        raise ConfigError(f"{where}.paths is empty: say where its documents are.")
    if one.licenses and one.reader != "code" and ":" not in one.reader:
        raise ConfigError(f"{where}.licenses: the reader {one.reader!r} does not look at licences; only `code` does.")
    if one.sample_by_quality and one.min_quality is not None:
        raise ConfigError(f"{where}: set min_quality or sample_by_quality, not both.")
    if (one.sample_by_quality or one.min_quality is not None) and not has_quality:
        raise ConfigError(f"{where} asks for quality: set config.quality.good and config.quality.ordinary.")
    if one.max_bits_per_byte is not None and not has_model:
        raise ConfigError(f"{where}.max_bits_per_byte needs a model: set config.perplexity_checkpoint.")
