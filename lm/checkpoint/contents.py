"""What is in a checkpoint, read lazily with numpy and TensorStore: no JAX, no mesh, no model code."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from lm.checkpoint.checksum import to_text
from lm.checkpoint.layout import finished_steps, read_newest
from lm.checkpoint.pieces import Index
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.run_folder import locate, read_run_info
from lm.errors import UsageError, did_you_mean
from lm.storage import exists, join

T = TypeVar("T")
_BLOCK = 1 << 22  # elements converted to f64 at a time


class StoredArray:
    """One array of a checkpoint; nothing of it is read until it is indexed.

    Attributes:
      path: its name in `Checkpoint.arrays`.
      item, leaf: where it lies: `params`, `layers/mlp/up/kernel`.
    """

    def __init__(self, reader: CheckpointReader, path: str, item: str, leaf: str):
        self._reader, self.path, self.item, self.leaf = reader, path, item, leaf

    @functools.cached_property
    def _store(self):
        return self._reader.open(self.item, self.leaf)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._store.shape)

    @property
    def dtype(self) -> np.dtype:
        """The numpy type; bfloat16 and the 8-bit floats are those of `ml_dtypes`."""
        return self._store.dtype.numpy_dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read a part, `array[3, :, :10]` (places count from 0 upwards), or all of it, verified, `array[...]`."""
        if index is ...:
            return self._reader.read(self.item, self.leaf)
        return self._reader.finish(self.item, self.leaf, self._store[index].read())

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[...] if dtype is None else self[...].astype(dtype)

    def __repr__(self) -> str:
        return f"StoredArray({self.path}: {self.dtype}{list(self.shape)})"

    def pieces(self) -> Iterator[tuple[Index, np.ndarray]]:
        """Yield (index, values) of the whole array in parts; see `CheckpointReader.pieces`."""
        return self._reader.pieces(self.item, self.leaf)

    def check(self, sums: np.ndarray) -> None:
        """Raise a DamagedFileError if `array_sums` of all parts are not those that the array was saved with."""
        self._reader.check(f"{self.item}/{self.leaf}", to_text(sums))

    def norm(self) -> float:
        """Return the Euclidean norm, summed in f64; the array need not fit into memory."""
        return math.sqrt(sum(np.vdot(block, block) for _, values in self.pieces() for block in blocks(values)))


class Checkpoint:
    """A checkpoint of a run, or one copied from it. Use `lm.checkpoint.open`.

    Attributes:
      path: the folder of this step.
      step: the step it was saved after.
      steps: all steps that lie beside it, oldest first.
      info: the run's `config.json`; empty for a checkpoint that was copied without it.
      config: the run's config as a plain dict, resolved; empty likewise.
      data: the data's position: rows consumed, the manifest's hash.
      meta: what was saved about the checkpoint itself; its checksums are `reader.checksums`.
      arrays: `StoredArray`s by path. Parameters have their own (`layers/mlp/up/kernel`), arrays of other items begin
        with the item: `opt_state/…`, `extra/ema/…`.

    Raises (here and in every method):
      DamagedFileError: something that must be there is missing or cannot be read.
    """

    def __init__(self, path: str, info: Mapping[str, Any], steps: list[int], step: int):
        self.path, self.info, self.steps, self.step = path, info, steps, step
        self.reader = CheckpointReader(path)
        self.config: dict[str, Any] = info.get("config", {})
        self.data, meta = self.reader.json("data"), self.reader.json("meta")
        self.meta = {name: value for name, value in meta.items() if name not in ("checksums", "digest")}
        self.arrays: Mapping[str, StoredArray] = _Arrays(self)
        for item in self.items():
            for leaf in self.reader.leaves(item):
                name = leaf if item == "params" else f"{item}/{leaf}"
                self.arrays[name] = StoredArray(self.reader, name, item, leaf)

    def __repr__(self) -> str:
        return f'Checkpoint("{self.path}": step {self.step}, {len(self.arrays)} arrays)'

    def items(self) -> list[str]:
        """Return the items that are there: `params`, `frozen`, `opt_state`, `extra`."""
        return self.reader.items()

    def of(self, item: str = "params") -> list[StoredArray]:
        """Return an item's arrays, all opened side by side."""
        found = [array for array in self.arrays.values() if array.item == item]
        stores = self.reader.open_all(item, [array.leaf for array in found])
        for array in found:
            array._store = stores[array.leaf]
        return found

    def tree(self, item: str = "params") -> dict[str, Any]:
        """Return an item as a nested dict of `StoredArray`s."""
        tree: dict[str, Any] = {}
        for array in self.of(item):
            *parents, name = array.leaf.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = array
        return tree

    def totals(self) -> dict[str, dict[str, int]]:
        """Return the number of arrays, their elements and their bytes by item."""
        return {
            item: {
                "arrays": len(arrays := self.of(item)),
                "elements": sum(array.size for array in arrays),
                "bytes": sum(array.nbytes for array in arrays),
            }
            for item in self.items()
        }


class _Arrays(dict):
    """Arrays by path; one that is absent is said with the nearest name."""

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self._checkpoint = checkpoint

    def __missing__(self, path: str):
        hint = did_you_mean(path, self) or " `lm inspect` lists them."
        raise UsageError(f'"{self._checkpoint.path}" has no array "{path}".{hint}')


def open(path: str, step: int | str | None = None, *, warn: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """Open a checkpoint for reading with numpy and TensorStore alone, on any machine.

    Args:
      path: a run's folder or the folder of one step, local or on an object store.
      step: or `best`, by its validation; None: the newest that can be read; damaged ones are passed over.
      warn: gets a line about each that is passed over.

    Raises:
      UsageError: there is no run, no checkpoint, or not the step asked for.
      DamagedFileError: it cannot be read.

    Example:
      >>> checkpoint = lm.checkpoint.open("runs/tiny")
      >>> checkpoint.arrays["layers/mlp/up/kernel"][0]
    """
    return read(path, step, lambda checkpoint: checkpoint, warn)


def read(path: str, step: int | str | None, use: Callable[[Checkpoint], T], warn: Callable[[str], None]) -> T:
    """Return what `use` makes of the newest checkpoint that can be read as far as `use` reads it; see `open`."""
    workdir, folder, step = locate(path, step)
    # A step that was copied alone has no config; it is still a checkpoint.
    is_alone = step is not None and not exists(join(workdir, "config.json"))
    info = {} if is_alone else read_run_info(workdir)
    steps = finished_steps(folder)
    of_step = lambda number: use(Checkpoint(join(folder, str(number)), info, steps, number))  # noqa: E731
    return read_newest(folder, step, of_step, warn, steps)


def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array's elements in f64, flat, a few million at a time."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return (flat[i : i + _BLOCK].astype(np.float64) for i in range(0, flat.size, _BLOCK))
