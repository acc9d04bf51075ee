"""Sources: where documents come from.

A source is a callable `source(config: DataConfig) -> Iterator[Document]`. It yields the same documents
in the same order each time that it is called. `config.data.source` names a built-in one, or an own one
as "package.module:Name".
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from lm.config import DataConfig
from lm.data.document import Document, Progress, Source
from lm.data.sources import huggingface as hub
from lm.data.sources import named
from lm.data.sources.files import jsonl, jsonl_files, python_version, stat_files, stdlib, stdlib_files, text, text_files
from lm.data.sources.huggingface import huggingface
from lm.data.sources.named import download
from lm.data.sources.parquet import parquet, parquet_files
from lm.errors import ConfigError, did_you_mean
from lm.extensions import load_extension

__all__ = [
    "BUILTIN",
    "Document",
    "Source",
    "about",
    "acquire",
    "documents",
    "download",
    "find_source",
    "huggingface",
    "inputs",
    "jsonl",
    "parquet",
    "stdlib",
    "stdlib_files",
    "text",
]

BUILTIN: dict[str, Source] = {
    "stdlib": stdlib,
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
    "download": download,
    "huggingface": huggingface,
}
_LISTED: dict[str, Callable[[DataConfig], list[str]]] = {
    "stdlib": stdlib_files,
    "text": text_files,
    "jsonl": jsonl_files,
    "parquet": parquet_files,
}


def find_source(name: str) -> Source:
    """Return a built-in source, or the object at "package.module:Name".

    Raises:
      ConfigError: there is no such source.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    if ":" not in name:
        raise ConfigError(
            f'config.data.source={name!r}: expected one of {", ".join(BUILTIN)}, or "package.module:Name".'
            f"{did_you_mean(name, BUILTIN)}"
        )
    return load_extension("data.source", name)


def documents(config: DataConfig) -> Iterator[Document]:
    """Yield the config's documents, no more than `config.max_documents`."""
    return itertools.islice(find_source(config.source)(config), config.max_documents)


def acquire(config: DataConfig, progress: Progress | None = None) -> None:
    """Download what the source needs and verify it; nothing for a source that reads what is there.

    Raises:
      UsageError, DamagedFileError, LmError: as `lm.data.download.fetch`.
    """
    if config.source == "download":
        named.acquire(config, progress)


def inputs(config: DataConfig, progress: Progress | None = None) -> Any:
    """Return, as JSON, what changes whenever the source's documents may change.

    A built-in source's files enter by path, size and modification time, and are not opened; downloads
    by their sha256; a dataset of the Hugging Face hub by its commit; an own source's documents by their
    text, which reads them all.
    """
    if config.source in _LISTED:
        return stat_files(_LISTED[config.source](config))
    if config.source == "download":
        return named.inputs(config, progress)
    if config.source == "huggingface":
        return hub.inputs(config)
    digest = hashlib.sha256()
    for document in documents(config):
        digest.update(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def about(config: DataConfig) -> dict[str, Any]:
    """Return what a prepared folder's manifest says of its source, as JSON."""
    content: dict[str, Any] = {"name": config.source, "path": config.path}
    if config.source == "stdlib":
        content["python"] = python_version()
    elif config.source == "download":
        content |= named.about(config)
    elif config.source == "huggingface":
        content |= hub.about(config)
    if config.max_documents is not None:
        content["max_documents"] = config.max_documents
    return content
