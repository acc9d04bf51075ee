"""The difference of two checkpoints, array by array, in bounded memory. No JAX here."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.checkpoint.checksum import array_sums
from lm.checkpoint.contents import Checkpoint, StoredArray, blocks


def difference(
    a: Checkpoint, b: Checkpoint, item: str = "params", progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Compare an item of two checkpoints.

    Args:
      a, b: of any runs and types; b is taken relative to a.
      item: e.g. `params`.
      progress: called with the arrays done and their number.

    Returns:
      `arrays`: for each in both with one shape, `path`, `relative` (‖b - a‖ / ‖a‖, Euclidean norms; None where a is 0
      and b is not), `max_abs` (the largest |b - a|), `dtypes` where they differ; `shapes`: (path, a's, b's) where they
      differ; `only_in_a`, `only_in_b`: paths; `config`: field -> (a's, b's) where they differ; `relative`, `max_abs` and
      `identical` of all.
    """
    mine, theirs = ({array.path: array for array in checkpoint.of(item)} for checkpoint in (a, b))
    both = [path for path in mine if path in theirs]
    comparable = [path for path in both if mine[path].shape == theirs[path].shape]
    arrays, squares = [], np.zeros(2)
    for number, path in enumerate(comparable, 1):
        of_difference, of_a, largest = _compare(mine[path], theirs[path])
        squares += of_difference, of_a
        entry = {"path": path, "relative": _ratio(of_difference, of_a), "max_abs": largest}
        if mine[path].dtype != theirs[path].dtype:
            entry["dtypes"] = [str(mine[path].dtype), str(theirs[path].dtype)]
        arrays.append(entry)
        progress(number, len(comparable))
    shapes = [(path, list(mine[path].shape), list(theirs[path].shape)) for path in both if path not in comparable]
    only_in_a, only_in_b = [p for p in mine if p not in theirs], [p for p in theirs if p not in mine]
    return {
        "relative": _ratio(*squares),
        "max_abs": _largest([entry["max_abs"] for entry in arrays]),
        "identical": not (shapes or only_in_a or only_in_b) and all(entry["max_abs"] == 0 for entry in arrays),
        "arrays": arrays,
        "shapes": shapes,
        "only_in_a": only_in_a,
        "only_in_b": only_in_b,
        "config": config_difference(a.config, b.config),
    }


def _compare(a: StoredArray, b: StoredArray) -> tuple[float, float, float]:
    """Return the squared norms of b - a and of a, and the largest |b - a|."""
    of_difference = of_a = largest = 0.0
    sums_of_b = np.zeros(2, np.uint32)
    for index, values in a.pieces():
        values_of_b = b[index]
        sums_of_b += array_sums(values_of_b, tuple(part.start for part in index))
        for mine, theirs in zip(blocks(values), blocks(values_of_b), strict=True):
            change = theirs - mine
            of_difference, of_a = of_difference + np.vdot(change, change), of_a + np.vdot(mine, mine)
            largest = _largest([largest, np.max(np.abs(change), initial=0)])
    b.check(sums_of_b)
    return float(of_difference), float(of_a), largest


def _largest(values: Sequence[float]) -> float:
    """As `max`, and NaN if one of them is."""
    return float(np.max(values, initial=0))


def _ratio(of_difference: float, of_a: float) -> float | None:
    if of_difference == 0:
        return 0.0
    return math.sqrt(of_difference / of_a) if of_a else None


def config_difference(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return `model.num_layers` -> (a's, b's) for each field of two nested dicts that differs."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(set(a) | set(b)):
        mine, theirs = a.get(name), b.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found |= config_difference(mine, theirs, f"{prefix}{name}.")
        elif mine != theirs:
            found[f"{prefix}{name}"] = (mine, theirs)
    return found
