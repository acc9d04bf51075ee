"""Prepared data in a cache: the folder's name is a hash of everything that decides its content."""

import hashlib
import json
import os
import shutil
import time

from lm import storage
from lm.config import DataConfig
from lm.data.build import build_or_keep
from lm.data.dataset import MANIFEST, TOKENIZER, TOKENIZER_ABOUT, VERSION, cached_copy, open_data, read_manifest
from lm.data.document import Progress
from lm.data.provenance import docs_path
from lm.data.shards import ends_path
from lm.data.sources import inputs
from lm.data.sources.files import python_version
from lm.errors import DamagedFileError, UsageError
from lm.tokenizer.files import tokenizer_identity

_STALE_SECONDS = 24 * 3600


def prepare(config: DataConfig, *, cache_root: str | None = None, progress: Progress | None = None) -> str:
    """Return a folder with the config's data as token shards, building it if the cache has none.

    The source `shards` means `config.path`, a folder that is already built; one on an object store is copied into the
    cache once.

    Args:
      config: the data section.
      cache_root: None: `config.cache`, $LM_CACHE or ~/.cache/lm.
      progress: called while building.

    Raises:
      UsageError, DamagedFileError, LmError: as `build`.
    """
    if config.source == "shards":
        if not config.path:
            raise UsageError('config.data.path=None: the source "shards" needs a folder made by lm data build.')
        if storage.is_remote(config.path):
            return fetch_shards(config.path, cache_root or config.cache, progress)
        return open_data(config.path).folder
    parent = storage.join(storage.cache_root(cache_root or config.cache), "data")
    folder = os.path.join(parent, cache_key(config, progress)[:24])
    if not os.path.exists(os.path.join(folder, MANIFEST)):
        _remove_stale(parent)
        build_or_keep(config, folder, progress=progress)
    return folder


def fetch_shards(url: str, cache: str | None = None, progress: Progress | None = None) -> str:
    """Copy prepared data from an object store into the cache, file by file, and return the local folder.

    The folder is named after the manifest's hash. A file that is there already is not copied again, so a copy that was
    broken off goes on; the manifest comes last: where it is, all is. Every host does this for itself.

    Raises:
      UsageError: there is no manifest at the URL.
      DamagedFileError: it is damaged, or a file is missing.
      LmError: the store cannot be read, or the cache not be written.
    """
    manifest = read_manifest(url)
    folder = cached_copy(manifest, cache)
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    files = [shard["file"] for shard in shards]
    origins = [docs_path(shard["file"]) for shard in shards if "docs_sha256" in shard]
    names = [TOKENIZER, TOKENIZER_ABOUT, *files, *map(ends_path, files), *origins, MANIFEST]
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        storage.make_folder(folder)
    for done, name in enumerate(missing, len(names) - len(missing)):
        if progress:
            progress("copy shards", done, len(names), "files")
        try:
            storage.download(storage.join(url, name), os.path.join(folder, name))
        except FileNotFoundError as error:
            raise DamagedFileError(f'"{url}" has no {name}, which its {MANIFEST} speaks of. Copy it again.') from error
    return folder


def cache_key(config: DataConfig, progress: Progress | None = None) -> str:
    """Return a sha256 that changes with anything that changes the prepared data (`inputs` says of sources what).

    A download whose sha256 is not known yet is downloaded, and a dataset's branch resolved to its commit.
    """
    key = {
        "version": VERSION,
        "source": config.source,
        "fractions": [config.validation_fraction, config.test_fraction],
        "inputs": inputs(config, progress),
    }
    if config.source in ("jsonl", "parquet", "download", "huggingface"):
        key["text_key"] = config.text_key
    if config.max_documents is not None:
        key["max_documents"] = config.max_documents
    if config.source == "stdlib":
        key["python"] = python_version()
    if config.tokenizer == "train":
        key["tokenizer"] = ["train", config.tokenizer_vocab_size, config.tokenizer_pattern]
    else:
        key["tokenizer"] = tokenizer_identity(config.tokenizer)
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _remove_stale(parent: str) -> None:
    """Remove what builds that were killed outright left behind a day ago or more."""
    for name in storage.list_names(parent):
        path = os.path.join(parent, name)
        if name.startswith(".") and name.endswith(".tmp") and time.time() - os.path.getmtime(path) > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
