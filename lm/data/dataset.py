"""A prepared folder: its manifest, tokenizer and shards."""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import numpy as np

from lm import storage
from lm.data.shards import Shard, ends_path
from lm.data.verification import AT_ONCE, Verification
from lm.errors import DamagedFileError, UsageError
from lm.tokenizer import Tokenizer, load_tokenizer

FORMAT, VERSION = "lm-shards", 1
MANIFEST = "manifest.json"
TOKENIZER, TOKENIZER_ABOUT = "tokenizer.tiktoken", "tokenizer.json"  # as `lm.tokenizer.save` writes them


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Token shards on disk.

    Attributes:
      folder: where they are.
      manifest: the content of `manifest.json`.
      verify: hash a split's shards when they are opened, or from then on (`lm.data.verification`).
    """

    folder: str
    manifest: dict[str, Any]
    verify: bool = True

    @property
    def hash(self) -> str:
        """The data's identity: sha256 over tokenizer and shards, wherever they came from or lie."""
        return self.manifest["hash"]

    @property
    def vocab_size(self) -> int:
        """V of the tokenizer, special tokens included."""
        return self.manifest["tokenizer"]["vocab_size"]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have documents."""
        return [name for name, split in self.manifest["splits"].items() if split["documents"]]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids the shards hold."""
        tokenizer = load_tokenizer(os.path.join(self.folder, TOKENIZER))
        about = self.manifest["tokenizer"]
        if (tokenizer.sha256, tokenizer.vocab_size) != (about["sha256"], about["vocab_size"]):
            raise DamagedFileError(f'"{self.folder}/{TOKENIZER}" is not the tokenizer of the shards beside it.')
        return tokenizer

    @property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes per token id: int32 [V], 0 for special tokens."""
        return self.tokenizer.token_bytes

    def counts(self, split: str) -> dict[str, Any]:
        """Return a split's `documents`, `tokens`, `bytes` and `shards`.

        Raises:
          UsageError: the split has no documents.
        """
        entry = self.manifest["splits"].get(split)
        if not entry or not entry["documents"]:
            remedy = (
                "lower config.data.validation_fraction" if split == "train" else f"raise config.data.{split}_fraction"
            )
            raise UsageError(
                f'the data in "{self.folder}" has no {split} documents (it has: {", ".join(self.splits) or "none"}). '
                f"Give more text, or {remedy}."
            )
        return entry

    def domains(self, split: str) -> list[str | None]:
        """Return the domain of each of a split's shards; None: it has none."""
        return [entry.get("domain") for entry in self.counts(split)["shards"]]

    def shards(self, split: str) -> list[Shard]:
        """Map a split's shards.

        With `verify`, what is damaged in a split of more than 1 GB is found while it is read: `Shard.check` then
        raises, and so do the loader's and the evaluation's batches.

        Raises:
          UsageError: the split has no documents.
          DamagedFileError: a shard is truncated, or changed since it was built.
        """
        entries = {os.path.join(self.folder, entry["file"]): entry for entry in self.counts(split)["shards"]}
        shards = [Shard.open(path, entry) for path, entry in entries.items()]
        if not self.verify:
            return shards
        expected = {path: entry["sha256"] for path, entry in entries.items()}
        expected |= {ends_path(path): entry["ends_sha256"] for path, entry in entries.items()}
        verification = Verification(expected)
        if sum(shard.tokens.nbytes + shard.ends.nbytes for shard in shards) <= AT_ONCE:
            verification.check(wait=True)
            return shards
        return [dataclasses.replace(shard, verification=verification) for shard in shards]


def open_data(folder: str, verify: bool = True) -> Dataset:
    """Open a folder made by `prepare` or `lm data build`.

    Args:
      folder: has a `manifest.json`.
      verify: hash the shards that are opened (about 1 GB/s) against the manifest; sizes are always checked.

    Raises:
      UsageError: there is no manifest.
      DamagedFileError: the manifest cannot be read.
    """
    return Dataset(folder, read_manifest(folder), verify)


def read_manifest(folder: str) -> dict[str, Any]:
    """Return the manifest of prepared data, in a local folder or on an object store.

    Raises:
      UsageError: there is none.
      DamagedFileError: it cannot be read, or its hash does not fit its content.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise UsageError(f'no prepared data in "{folder}" (no {MANIFEST}). Make it with: lm data build.')
    try:
        manifest = json.loads(storage.read_text(path))
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise DamagedFileError(f'"{path}" is not a manifest of format {FORMAT} version {VERSION}. Build it again.')
        if manifest["hash"] != manifest_hash(manifest):
            raise DamagedFileError(f'"{path}" was changed: its hash does not fit its content. Build it again.')
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {type(error).__name__}: {error}. Build it again.') from error
    return manifest


def cached_copy(manifest: dict[str, Any], cache: str | None) -> str:
    """Return the local folder for data that lies on an object store: the same for the same data, wherever that is."""
    return os.path.join(storage.cache_root(cache), "data", f"shards-{manifest['hash'][:24]}")


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Return the sha256 of what the manifest says of tokenizer, splits and mixture: 64 hexadecimal digits.

    Where documents come from does not enter.
    """
    splits = {
        name: {**split, "shards": [{k: v for k, v in e.items() if k != "docs_sha256"} for e in split["shards"]]}
        for name, split in manifest["splits"].items()
    }
    identity = {"version": manifest["version"], "tokenizer": manifest["tokenizer"]["sha256"], "splits": splits}
    if manifest.get("mixture"):
        identity["mixture"] = manifest["mixture"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
