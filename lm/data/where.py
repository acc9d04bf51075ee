"""From a batch back to the documents in it."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm.data.loader import Loader
from lm.data.provenance import docs_path, read_origins
from lm.data.shards import Shard, check_file

_SNIPPET = 48  # tokens


def where(loader: Loader, step: int, rows: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Return what fills each row of a step's batch.

    Args:
      loader: of the run.
      step: from 0.
      rows: of the batch; None: all.

    Returns:
      Per row `row`, `domain` (None: the data has none), `shard` (a file of the manifest) and `documents`, in the order
      of the columns. A document has `document` (its number in the shard, from 0), `column`, `tokens` (of it in this
      row), `token` and `byte` (how many of the document come before; its separator is token 0, of no bytes), `text` (how
      the piece begins) and, where the folder says so, `id`, `source` and `url`.

    Raises:
      IndexError: there is no such row.
      DamagedFileError: a shard or its sidecar is damaged.
    """
    size = loader.stages.at(step).batch_size
    wanted = np.arange(size) if rows is None else np.asarray(rows, np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < size:
        raise IndexError(f"row {wanted.min()} to {wanted.max()} of {size}")
    entries = loader.dataset.counts(loader.split)["shards"]
    found: list[dict[str, Any]] = [{} for _ in wanted]
    for number, here, runs in loader.runs(step, wanted):
        shard, entry = loader.shards[number], entries[number]
        shard.check()
        for place in here.tolist():
            about = {"row": int(wanted[place]), "domain": entry.get("domain"), "shard": entry["file"]}
            found[place] = {**about, "documents": []}
        for row, column, start, length in zip(runs.row, runs.column, runs.start, runs.length, strict=True):
            pieces = _pieces(loader, shard, int(column), int(start), int(length))
            found[int(here[row])]["documents"] += pieces
        _add_origins(loader.dataset.folder, entry, [found[place] for place in here.tolist()])
    return found


def _pieces(loader: Loader, shard: Shard, column: int, start: int, length: int) -> Iterator[dict[str, Any]]:
    """Yield the documents of a run."""
    tokenizer, position, stop = loader.dataset.tokenizer, start, start + length
    document = int(np.searchsorted(shard.ends, np.uint64(start), side="right"))
    while position < stop:
        end = min(int(shard.ends[document]), stop)
        first = int(shard.ends[document - 1]) if document else 0
        text = shard.tokens[position : min(position + _SNIPPET, end)]
        yield {
            "document": document,
            "column": column + position - start,
            "tokens": end - position,
            "token": position - first,
            "byte": int(tokenizer.token_bytes[shard.tokens[first:position]].sum()),
            "text": tokenizer.decode(text[text != tokenizer.eot_id]),
        }
        document, position = document + 1, end


def _add_origins(folder: str, entry: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Add what a shard's sidecar says of the documents; a piece of a document counts bytes from the whole one's start."""
    if "docs_sha256" not in entry:
        return
    path = docs_path(os.path.join(folder, entry["file"]))
    check_file(path, entry["docs_sha256"])
    pieces = [piece for row in rows for piece in row["documents"]]
    origins = read_origins(path, {piece["document"] for piece in pieces})
    for piece in pieces:
        origin = origins[piece["document"]]
        piece["byte"] += origin.get("start", 0)
        piece.update({name: value for name, value in origin.items() if name != "start"})
