"""Reading an Orbax checkpoint with numpy and TensorStore alone: no JAX, no mesh, no model code."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lm.checkpoint import pieces
from lm.checkpoint.checksum import array_sums, digest, to_text
from lm.checkpoint.kvstore import CONTEXT, got_no_answer, ocdbt
from lm.checkpoint.layout import ARRAY_ITEMS
from lm.errors import ConfigError, DamagedFileError, LmError, UsageError
from lm.storage import exists, join, read_bytes


class CheckpointReader:
    """One checkpoint's content, read lazily.

    Args:
      path: the folder of one step.

    Raises (here and in every method):
      DamagedFileError: something that must be there is missing or cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        self._metadata: dict[str, Mapping] = {}
        self._context = None
        if not exists(join(path, "_CHECKPOINT_METADATA")):
            raise self._damaged("it was not written to its end (no _CHECKPOINT_METADATA)")

    def _damaged(self, reason: str) -> DamagedFileError:
        return DamagedFileError(f'checkpoint "{self.path}" is damaged: {reason}')

    def misfit(self, reason: str) -> ConfigError:
        """Return the error for a checkpoint that is whole, but of another model than the one asked for."""
        return ConfigError(f'checkpoint "{self.path}" does not fit this config: {reason}.')

    def items(self) -> list[str]:
        """Return the array items that are there: `params`, `opt_state`, …"""
        return [name for name in ARRAY_ITEMS if exists(join(self.path, name))]

    def json(self, item: str) -> dict[str, Any]:
        """Return a JSON item: `data` or `meta`."""
        return self._load_json(join(self.path, item, "metadata"))

    def _load_json(self, path: str) -> dict[str, Any]:
        try:
            content = json.loads(read_bytes(path))
        except (UsageError, ValueError) as error:
            raise self._damaged(f'"{path}" is missing or not JSON') from error
        if not isinstance(content, dict):
            raise self._damaged(f'"{path}" does not hold a JSON object')
        return content

    @functools.cached_property
    def checksums(self) -> dict[str, str] | None:
        """The checksum that each array was saved with, by `item/path`; None: it was written without them.

        Raises:
          DamagedFileError: `data` or `meta` is not what was saved.
        """
        data, meta = self.json("data"), self.json("meta")
        expected = meta.pop("digest", None)
        if expected is None and "checksums" not in meta:
            return None
        if expected != digest(data, meta):
            raise self._damaged("data or meta is not what was saved (its sha256 is another one)")
        return meta["checksums"]

    def verify(self, item: str) -> list[str]:
        """Return the paths of an item's arrays that are not what was saved, by their checksums.

        A bounded number of stored chunks is in memory at a time.

        Raises:
          UsageError: the checkpoint was written without checksums.
          DamagedFileError: what lists the arrays is damaged.
        """
        if self.checksums is None:
            raise UsageError(f'checkpoint "{self.path}" has no checksums: it was written by an older version.')
        saved = {path.removeprefix(f"{item}/") for path in self.checksums if path.startswith(f"{item}/")}
        there = set(self.leaves(item))
        damaged = there ^ saved
        for path in there & saved:
            try:
                for _ in self.pieces(item, path):
                    pass
            except DamagedFileError:
                damaged.add(path)
        return sorted(damaged)

    def pieces(self, item: str, path: str) -> Iterator[tuple[pieces.Index, np.ndarray]]:
        """Yield (index, values) of a whole array in parts of a stored chunk each, a bounded number under way at a time.

        Raises:
          DamagedFileError: also after the last part, if they are not what was saved.
        """
        store, total = self.open(item, path), np.zeros(2, np.uint32)

        def start(index: pieces.Index):
            future = store[index].read()
            return lambda: (index, self.finish(item, path, future))

        reads = ((nbytes, functools.partial(start, index)) for nbytes, index in pieces.pieces(store))
        for index, values in pieces.read_ahead(reads, pieces.in_flight(self.path)):
            total += array_sums(values, tuple(part.start for part in index))
            yield index, values
        self.check(f"{item}/{path}", to_text(total))

    def check(self, path: str, checksum: str) -> None:
        """Raise a DamagedFileError if an array, `item/path`, was saved with another checksum (`to_text`)."""
        if self.checksums is not None and self.checksums.get(path) != checksum:
            raise self._damaged(f"{path} is not what was saved (its checksum is another one)")

    def leaves(self, item: str) -> list[str]:
        """Return the paths of an item's arrays, e.g. `layers/mlp/up/kernel`, in the order written."""
        return list(self._entries(item))

    def _entries(self, item: str) -> Mapping[str, str]:
        if item not in self._metadata:
            metadata = self._load_json(join(self.path, item, "_METADATA"))
            try:
                keys = [
                    [key["key"] for key in leaf["key_metadata"]]
                    for leaf in metadata["tree_metadata"].values()
                    if leaf["value_metadata"]["value_type"] != "None"
                ]
            except (KeyError, TypeError, AttributeError) as error:
                raise self._damaged(f"the metadata of {item} are not Orbax's") from error
            self._metadata[item] = {"/".join(key): ".".join(key) for key in keys}
        return self._metadata[item]

    def open(self, item: str, path: str):
        """Return one array as a TensorStore: it has `shape` and `dtype`, and `store[index].read()`."""
        return self.open_all(item, [path])[path]

    def open_all(self, item: str, paths: Iterable[str]) -> dict[str, Any]:
        """Return many arrays as TensorStores by path, opened side by side: each takes a few round trips to a store."""
        started = {path: self._start_opening(item, path) for path in paths}
        return {path: self._wait(f"{item}/{path} cannot be opened", future) for path, future in started.items()}

    def _start_opening(self, item: str, path: str):
        import tensorstore as ts

        try:
            name = self._entries(item)[path]
        except KeyError as error:
            raise self.misfit(f"{item} has no array {path}") from error
        if self._context is None:
            self._context = ts.Context(CONTEXT)
        kvstore = ocdbt(join(self.path, item), name)
        # Orbax stores chunks of zeros too, so one that is missing is damage, not zeros.
        spec = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
        try:
            return ts.open(spec, open=True, read=True, context=self._context)
        except ValueError as error:  # a scheme that TensorStore does not know
            raise LmError(f'cannot read checkpoint "{self.path}": {_reason(error)}') from error

    def read(self, item: str, path: str, index: Any = ...) -> np.ndarray:
        """Return one array, verified by its checksum, or a part of it, which cannot be."""
        array = self.finish(item, path, self.open(item, path)[index].read())
        if index is ...:
            self.check(f"{item}/{path}", to_text(array_sums(array)))
        return array

    def finish(self, item: str, path: str, future) -> np.ndarray:
        """Wait for a TensorStore read of an array that `open` gave."""
        return np.asarray(self._wait(f"{item}/{path} cannot be read", future))

    def _wait(self, problem: str, future) -> Any:
        try:
            return future.result()
        except ValueError as error:
            if got_no_answer(error):
                raise LmError(f'checkpoint "{self.path}": {problem} ({_reason(error)}).') from error
            raise self._damaged(f"{problem} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """TensorStore nests its messages and appends its whole specification; the innermost says what happened."""
    text = " ".join(str(error).split())
    code, innermost = text.partition(":")[0], text.split(" [")[0].rpartition(": ")[2]
    return (innermost if innermost.startswith(code) else f"{code}: {innermost}")[:200]
