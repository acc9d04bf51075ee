"""From documents to a prepared folder: split, train the tokenizer, encode, write shards and manifest."""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lm import storage
from lm.config import DataConfig
from lm.data.dataset import FORMAT, MANIFEST, TOKENIZER, VERSION, cached_copy, manifest_hash, read_manifest
from lm.data.document import Document, Progress
from lm.data.shards import ShardWriter, token_dtype
from lm.data.sources import about, acquire, documents
from lm.data.splits import SPLITS, split_documents, split_each
from lm.errors import LmError, UsageError
from lm.tokenizer import Tokenizer, encode_documents, load_tokenizer, save, train_bpe

SHARD_TOKENS = 100_000_000


def build(
    config: DataConfig, folder: str, *, progress: Progress | None = None, shard_tokens: int = SHARD_TOKENS
) -> str:
    """Make a prepared folder. It appears whole or not at all. Returns where it is on this machine.

    Args:
      config: source, tokenizer and fractions.
      folder: must not exist, or be empty; one on an object store is built in the cache first, and stays there.
      progress: called as work goes on.
      shard_tokens: a shard is closed at the first document end at or after so many tokens.

    Raises:
      UsageError: the folder is not empty, the source has no text or its path is missing, or there is too
        little text for the vocabulary.
      DamagedFileError: an input cannot be read.
      LmError: the folder cannot be written.
    """
    if storage.list_names(folder):
        raise UsageError(f'"{folder}" is not empty. Choose a new folder.')
    if not storage.is_remote(folder):
        build_or_keep(config, folder, progress=progress, shard_tokens=shard_tokens)
        return folder
    storage.make_folder(folder)  # a store that cannot be written is found before the work
    parent = os.path.join(storage.cache_root(config.cache), "data")
    storage.make_folder(parent)
    with tempfile.TemporaryDirectory(prefix="building-", dir=parent) as temporary:
        built = os.path.join(temporary, "data")
        build_or_keep(config, built, progress=progress, shard_tokens=shard_tokens)
        storage.upload(built, folder, MANIFEST)
        kept = cached_copy(read_manifest(built), config.cache)
        if not os.path.exists(kept):
            os.rename(built, kept)
    return kept


def build_or_keep(
    config: DataConfig, folder: str, *, progress: Progress | None = None, shard_tokens: int = SHARD_TOKENS
) -> None:
    """As `build`; but if another process has made the same folder meanwhile, that one stays."""
    acquire(config, progress)
    with published(folder) as temporary:
        manifest = _write(config, temporary, progress or (lambda *_: None), shard_tokens)
        storage.write_atomic(os.path.join(temporary, MANIFEST), json.dumps(manifest, indent=1) + "\n")


def make_tokenizer(config: DataConfig, progress: Progress | None = None) -> Tokenizer:
    """Load the config's tokenizer, or train it on the train split alone."""
    if config.tokenizer != "train":
        return load_tokenizer(config.tokenizer, cache=config.cache)
    texts = (document.text for split, document in _split(config) if split == "train")
    stage = (lambda done: progress("train tokenizer", done)) if progress else None
    return train_bpe(texts, config.tokenizer_vocab_size, config.tokenizer_pattern, stage)


def _split(config: DataConfig) -> Iterator[tuple[str, Document]]:
    return split_documents(lambda: documents(config), config.validation_fraction, config.test_fraction)


def _write(config: DataConfig, folder: str, progress: Progress, shard_tokens: int) -> dict:
    """Write tokenizer and shards into a folder; return the manifest."""
    tokenizer = make_tokenizer(config, progress)
    save(tokenizer, os.path.join(folder, TOKENIZER))
    named = (
        (split, document if document.source else dataclasses.replace(document, source=config.source))
        for split, document in _split(config)
    )
    tell = functools.partial(progress, "tokenize")
    entries = _write_shards(named, folder, "", tokenizer, shard_tokens, None, config.workers, tell)
    if not any(entries.values()):
        where = f' at "{config.path}"' if config.path else ""
        raise UsageError(f"the source {config.source!r} has no text{where}.")
    return assemble_manifest(
        entries,
        tokenizer=tokenizer,
        source=about(config),
        fractions=(config.validation_fraction, config.test_fraction),
    )


def write_shards(
    documents: Iterable[Document],
    folder: str,
    prefix: str,
    tokenizer: Tokenizer,
    fractions: tuple[float, float],
    shard_tokens: int = SHARD_TOKENS,
    domain: str | None = None,
    *,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Write one group of a corpus's documents as shards; groups may be written side by side.

    The same documents give the same files. A group that was broken off is written again, over what it left.

    Args:
      documents: read lazily; their `id`, `source`, `url` and `start` go to the shards' sidecars.
      folder: is there; local, or on an object store.
      prefix: of the files' names, one per group: `PREFIXtrain-00000.bin`, ….
      tokenizer: encodes.
      fractions: of the validation and the test split, by the hash of a document's text.
      shard_tokens: as of `build`.
      domain: of all the documents, for the mixture; None: none.
      workers: encoding processes; None: one per core.
      progress: called with the characters encoded so far.

    Returns:
      The shards' entries by split, for `assemble_manifest`.

    Raises:
      LmError: the folder cannot be written, or an encoding process died.
    """
    split = split_each(documents, *fractions)
    try:
        if not storage.is_remote(folder):
            return _write_shards(split, folder, prefix, tokenizer, shard_tokens, domain, workers, progress)
        with tempfile.TemporaryDirectory(prefix="lm-shards-") as local:
            entries = _write_shards(split, local, prefix, tokenizer, shard_tokens, domain, workers, progress)
            names = sorted(os.listdir(local))
            if names:
                storage.upload(local, folder, names[-1])
            return entries
    except OSError as error:
        raise LmError(f'cannot write in "{folder}": {error.strerror or error}.') from error


def _write_shards(
    documents: Iterable[tuple[str, Document]],
    folder: str,
    prefix: str,
    tokenizer: Tokenizer,
    shard_tokens: int,
    domain: str | None,
    workers: int | None,
    progress: Callable[[int], None] | None,
) -> dict[str, list[dict[str, Any]]]:
    dtype = token_dtype(tokenizer.vocab_size)
    writers = {
        split: ShardWriter(folder, prefix + split, dtype, tokenizer.eot_id, tokenizer.token_bytes, shard_tokens)
        for split in SPLITS
    }
    waiting: collections.deque[tuple[str, Document]] = collections.deque()  # whose texts are being encoded

    def texts() -> Iterator[str]:
        for split, document in documents:
            waiting.append((split, dataclasses.replace(document, text="")))
            yield document.text

    try:
        with contextlib.closing(encode_documents(tokenizer, texts(), workers, progress)) as encoded:
            for tokens in encoded:
                split, origin = waiting.popleft()
                writers[split].add(tokens, origin)
        entries = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abort()
    if domain is not None:
        entries = {split: [{**entry, "domain": domain} for entry in some] for split, some in entries.items()}
    return entries


def assemble_manifest(
    entries: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    tokenizer: Tokenizer,
    source: Mapping[str, Any],
    fractions: tuple[float, float],
    mixture: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the manifest of shards that lie beside each other in a folder.

    Args:
      entries: as `write_shards` returns them, those of several groups joined in an order of the caller's, which decides
        the data's hash.
      tokenizer: of the shards; the folder has its file under the name `lm.data.dataset.TOKENIZER`.
      source: what to say of where the data comes from; `name` at least.
      fractions: of the validation and the test split.
      mixture: `{"weights": {domain: weight}, "max_epochs": {domain: epochs}}`, used where the config says nothing.
    """
    splits = {}
    for split in SPLITS:
        shards = [dict(entry) for entry in entries.get(split, ())]
        totals = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")}
        splits[split] = {**totals, "shards": shards}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "source": dict(source),
        "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "validation_fraction": fractions[0],
        "test_fraction": fractions[1],
        **({"mixture": dict(mixture)} if mixture else {}),
        "splits": splits,
    }
    return {**manifest, "hash": manifest_hash(manifest)}


@contextlib.contextmanager
def published(folder: str) -> Iterator[str]:
    """Give a temporary folder that becomes `folder` at the end; on any error it is removed.

    If another process published the same folder meanwhile, that one stays.
    """
    parent = os.path.dirname(os.path.abspath(folder))
    storage.make_folder(parent)
    temporary = os.path.join(parent, f".{os.path.basename(os.path.abspath(folder))}.{uuid.uuid4().hex}.tmp")
    try:
        os.mkdir(temporary)
        yield temporary
        try:
            os.rename(temporary, folder)
        except OSError:
            if not os.path.exists(os.path.join(folder, MANIFEST)):
                raise
    except OSError as error:
        raise LmError(f'cannot write in "{parent}": {error.strerror or error}.') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
