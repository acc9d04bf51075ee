"""Stages `tokenizer` and `tokenize`: the documents that are left, to the token shards that training reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm import storage
from lm.corpus.config import CorpusConfig
from lm.corpus.draw import point
from lm.corpus.part import Part
from lm.corpus.record import SUFFIX, read_records
from lm.corpus.task import Report, Task
from lm.data.build import write_shards
from lm.data.dataset import TOKENIZER
from lm.data.document import Document
from lm.data.splits import split_of
from lm.tokenizer import load_tokenizer, save, train_bpe
from lm.tokenizer.files import tokenizer_identity

SAMPLE_BYTES = 1_000_000_000  # of text that a tokenizer is trained on; more changes no merge that matters
_BYTES_PER_TOKEN = 4  # about; decides how many parts make a task, nothing else


def tokenizer_task(out: str, work: str, config: CorpusConfig, parts: Sequence[Part]) -> Task:
    """Return the task that trains or copies the tokenizer, to `TOKENIZER` in the folder `out`."""
    prefix = storage.join(work, "tokenizer", "tokenizer")
    if config.tokenizer != "train":
        identity = tokenizer_identity(config.tokenizer)
        return Task(prefix, copy_tokenizer, {"tokenizer": config.tokenizer, "identity": identity, "folder": out})
    size = sum(part.bytes for part in parts)
    arguments = {
        "folder": out,
        "vocab_size": config.tokenizer_vocab_size,
        "pattern": config.tokenizer_pattern,
        "fractions": [config.validation_fraction, config.test_fraction],
        "seed": config.seed,
        "parts": [part.prefix for part in parts],
        "rate": min(1.0, SAMPLE_BYTES / max(size, 1)),
    }
    return Task(prefix, train_tokenizer, arguments, tuple(part.key for part in parts), size)


def shard_tasks(out: str, work: str, config: CorpusConfig, parts: Sequence[Part], tokenizer: Task) -> list[Task]:
    """Return a task per group of parts of one source; each writes shards into the folder `out`."""
    sources: dict[str, list[Part]] = {}
    for part in parts:
        if part.documents:
            sources.setdefault(part.source, []).append(part)
    tasks = []
    for source, some in sources.items():
        for number, group in enumerate(_groups(some, config.shard_tokens * _BYTES_PER_TOKEN)):
            arguments = {
                "parts": [part.prefix for part in group],
                "folder": out,
                "source": source,
                "prefix": f"{source}-{number:05d}-",
                "domain": config.sources[source].domain or source,
                "fractions": [config.validation_fraction, config.test_fraction],
                "shard_tokens": config.shard_tokens,
            }
            inputs = (tokenizer.key, *(part.key for part in group))
            size = sum(part.bytes for part in group)
            tasks.append(
                Task(storage.join(work, "shards", f"{source}-{number:05d}"), tokenize, arguments, inputs, size)
            )
    return tasks


def _groups(parts: Sequence[Part], size: int) -> Iterator[list[Part]]:
    """Yield runs of parts of about `size` bytes of text."""
    group: list[Part] = []
    for part in parts:
        if group and sum(each.bytes for each in group) + part.bytes > size:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def copy_tokenizer(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Put a tokenizer that exists beside the shards."""
    tokenizer = load_tokenizer(arguments["tokenizer"])
    save(tokenizer, storage.join(arguments["folder"], TOKENIZER))
    return {"name": tokenizer.name, "sha256": tokenizer.sha256}


def train_tokenizer(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Learn a byte-pair encoding from a sample of the train split: documents whose keyed hash is below the rate."""
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for prefix in arguments["parts"]:
            for record in read_records(prefix + SUFFIX):
                read += len(record.text)
                report(read)
                is_drawn = point("tokenizer", str(arguments["seed"]), record.source, record.id) < arguments["rate"]
                if is_drawn and record.text and split_of(record.text, *arguments["fractions"]) == "train":
                    yield record.text

    tokenizer = train_bpe(texts(), arguments["vocab_size"], arguments["pattern"])
    save(tokenizer, storage.join(arguments["folder"], TOKENIZER))
    return {"name": tokenizer.name, "sha256": tokenizer.sha256}


def tokenize(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Encode some parts' documents into shards of one domain.

    Returns:
      `entries`: of the manifest, by split.
    """
    tokenizer = load_tokenizer(storage.join(arguments["folder"], TOKENIZER))
    documents = (
        Document(record.text, record.id, record.source, record.url)
        for prefix in arguments["parts"]
        for record in read_records(prefix + SUFFIX)
    )
    entries = write_shards(
        documents,
        arguments["folder"],
        arguments["prefix"],
        tokenizer,
        tuple(arguments["fractions"]),
        arguments["shard_tokens"],
        arguments["domain"],
        progress=report,
    )
    return {"entries": entries}
