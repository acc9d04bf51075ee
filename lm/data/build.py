"""From documents to a prepared folder: split, train the tokenizer, encode, write shards and manifest."""

import collections
import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from lm import storage
from lm.config import DataConfig
from lm.data.dataset import FORMAT, MANIFEST, TOKENIZER, VERSION, cached_copy, manifest_hash, read_manifest
from lm.data.document import Progress
from lm.data.shards import ShardWriter, token_dtype
from lm.data.sources import about, acquire, documents
from lm.data.splits import SPLITS, split_documents
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
    with _published(folder) as temporary:
        manifest = _write(config, temporary, progress or (lambda *_: None), shard_tokens)
        storage.write_atomic(os.path.join(temporary, MANIFEST), json.dumps(manifest, indent=1) + "\n")


def make_tokenizer(config: DataConfig, progress: Progress | None = None) -> Tokenizer:
    """Load the config's tokenizer, or train it on the train split alone."""
    if config.tokenizer != "train":
        return load_tokenizer(config.tokenizer, cache=config.cache)
    texts = (text for split, text in _texts(config) if split == "train")
    stage = (lambda done: progress("train tokenizer", done)) if progress else None
    return train_bpe(texts, config.tokenizer_vocab_size, config.tokenizer_pattern, stage)


def _texts(config: DataConfig) -> Iterator[tuple[str, str]]:
    for split, document in split_documents(lambda: documents(config), config.validation_fraction, config.test_fraction):
        yield split, document.text


def _write(config: DataConfig, folder: str, progress: Progress, shard_tokens: int) -> dict:
    """Write tokenizer and shards into a folder; return the manifest."""
    tokenizer = make_tokenizer(config, progress)
    save(tokenizer, os.path.join(folder, TOKENIZER))
    dtype = token_dtype(tokenizer.vocab_size)
    writers = {
        split: ShardWriter(folder, split, dtype, tokenizer.eot_id, tokenizer.token_bytes, shard_tokens)
        for split in SPLITS
    }
    waiting: collections.deque[str] = collections.deque()  # splits of the texts that are being encoded

    def texts() -> Iterator[str]:
        for split, text in _texts(config):
            waiting.append(split)
            yield text

    try:
        encoded = encode_documents(tokenizer, texts(), config.workers, lambda done: progress("tokenize", done))
        with contextlib.closing(encoded):
            for document in encoded:
                writers[waiting.popleft()].add(document)
        splits = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abort()
    if not any(split["documents"] for split in splits.values()):
        where = f' at "{config.path}"' if config.path else ""
        raise UsageError(f"the source {config.source!r} has no text{where}.")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "source": about(config),
        "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "validation_fraction": config.validation_fraction,
        "test_fraction": config.test_fraction,
        "splits": splits,
    }
    return {**manifest, "hash": manifest_hash(manifest)}


@contextlib.contextmanager
def _published(folder: str) -> Iterator[str]:
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
