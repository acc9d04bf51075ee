"""Token files of other programs to a prepared folder, and a prepared folder to such files."""

import glob
import json
import os
from collections.abc import Iterator, Mapping

import numpy as np

from lm import storage
from lm.data.build import SHARD_TOKENS, assemble_manifest, published
from lm.data.dataset import MANIFEST, TOKENIZER, Dataset
from lm.data.document import Document, Progress
from lm.data.formats import find_format
from lm.data.shards import ShardWriter, token_dtype
from lm.errors import UsageError
from lm.tokenizer import Tokenizer, save


def import_tokens(
    paths: Mapping[str, str],
    format_name: str,
    tokenizer: Tokenizer,
    folder: str,
    *,
    shard_tokens: int = SHARD_TOKENS,
    domain: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Make a prepared folder of token files. It appears whole or not at all; memory is bounded by one document.

    Args:
      paths: of each split: a file, a folder or a glob; several files are read in the order of their names. What is named
        for another split is not trained on, if it is in the same folder.
      format_name: one of `lm.data.formats.FORMATS`.
      tokenizer: that the files were made with.
      folder: a new one on this machine.
      shard_tokens: as of `lm.data.build.build`.
      domain: of all documents, for the mixture.
      progress: called as work goes on.

    Raises:
      UsageError: no such file or format, the folder is not empty, or ids that the tokenizer does not have.
      DamagedFileError: a file is truncated or of another format.
      LmError: the folder cannot be written.
    """
    reader = find_format(format_name)
    if storage.list_names(folder):
        raise UsageError(f'"{folder}" is not empty. Choose a new folder.')
    found = {split: files_at(path, reader.SUFFIX) for split, path in paths.items()}
    named = {os.path.realpath(file) for split, files in found.items() if split != "train" for file in files}
    found["train"] = [
        file for file in found.get("train", ()) if os.path.realpath(file) not in named
    ]  # of a folder's files
    if "train" in paths and not found["train"]:
        raise UsageError(f'all files at "{paths["train"]}" are named for another split: name others to train on.')
    dtype, entries, done = token_dtype(tokenizer.vocab_size), {}, 0
    with published(folder) as temporary:
        save(tokenizer, os.path.join(temporary, TOKENIZER))
        for split, files in found.items():
            writer = ShardWriter(temporary, split, dtype, tokenizer.eot_id, tokenizer.token_bytes, shard_tokens)
            try:
                for place, tokens in reader.read(files, tokenizer):
                    document = np.insert(tokens.astype(np.uint32), 0, tokenizer.eot_id)
                    writer.add(document, Document("", place, format_name))
                    done += len(tokens)
                    if progress:
                        progress(f"import {split}", done, unit="tokens")
                entries[split] = [{**entry, "domain": domain} if domain else entry for entry in writer.close()]
            finally:
                writer.abort()
        if not any(entries.values()):
            raise UsageError(f"there are no documents in {', '.join(paths.values())}.")
        source = {"name": format_name, "path": paths.get("train")}
        manifest = assemble_manifest(entries, tokenizer=tokenizer, source=source, fractions=(0.0, 0.0))
        storage.write_atomic(os.path.join(temporary, MANIFEST), json.dumps(manifest, indent=1) + "\n")


def export_tokens(dataset: Dataset, split: str, format_name: str, path: str) -> list[str]:
    """Write a split's documents in another format; return the files, which are there whole or not at all.

    Raises:
      UsageError: no such format or split, the file exists, or the format cannot hold the tokens.
      DamagedFileError: a shard is damaged.
      LmError: the file cannot be written.
    """
    writer, shards = find_format(format_name), dataset.shards(split)

    def documents() -> Iterator[np.ndarray]:
        for shard in shards:
            for start, length in zip(shard.starts.tolist(), shard.lengths.tolist(), strict=True):
                yield shard.tokens[start + 1 : start + length]
            shard.check(wait=True)

    return writer.write(documents(), path, dataset.tokenizer)


def files_at(path: str, suffix: str) -> list[str]:
    """Return the files that a path means, sorted: a file (its suffix may be left out), a folder's or a glob's.

    Raises:
      UsageError: there are none.
    """
    if os.path.isdir(path):
        found = glob.glob(os.path.join(glob.escape(path), f"*{suffix}"))
    elif os.path.isfile(path) and path.endswith(suffix):
        found = [path]
    else:
        stem = os.path.splitext(path)[0] if os.path.isfile(path) else path
        found = [stem + suffix] if os.path.isfile(stem + suffix) else [f for f in glob.glob(path) if os.path.isfile(f)]
    if not found:
        raise UsageError(f'no files at "{path}": expected a *{suffix} file, a folder of them or a glob.')
    return sorted(found)
