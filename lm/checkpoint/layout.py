"""Where checkpoints lie: `<folder>/<step>/`, published whole by a rename. No JAX here.

A checkpoint's items are separate: `params`, `frozen`, `opt_state` and `extra` (arrays, each absent
where empty), `data` and `meta` (JSON). Evaluation reads `params` alone.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from lm.errors import DamagedFileError, UsageError
from lm.storage import exists, is_remote, join, list_names

ARRAY_ITEMS = ("params", "frozen", "opt_state", "extra")
JSON_ITEMS = ("data", "meta")
T = TypeVar("T")
_UNFINISHED = ".orbax-checkpoint-tmp"
PUBLISHED = "commit_success.txt"  # written last on an object store, which has no rename
WEIGHTS = {"params": "params", "ema": "extra/ema"}  # what a model can be opened with, and the item that holds it


def finished_steps(folder: str) -> list[int]:
    """Return the steps of the published checkpoints in a folder, oldest first."""
    return sorted(int(name) for name in _numbered(folder) if _published(folder, name))


def superfluous(steps: Sequence[int], *, keep: int, keep_every: int | None, best: Collection[int]) -> list[int]:
    """Return the steps whose checkpoints need not stay, oldest first.

    Args:
      steps: of the checkpoints there are, oldest first.
      keep: the newest that stay.
      keep_every: multiples of this stay; None: there are none.
      best: these stay.
    """
    kept = {*steps[-keep:], *best, *(step for step in steps if keep_every and step % keep_every == 0)}
    return [step for step in steps if step not in kept]


def read_newest(
    folder: str,
    step: int | None,
    read: Callable[[int], T],
    warn: Callable[[str], None],
    steps: Sequence[int] | None = None,
) -> T:
    """Return `read(step)`, or for None `read` of the newest checkpoint that it can read.

    Args:
      folder: holds one folder per step.
      step: the one asked for; None: damaged ones are passed over, with one line each to `warn`.
      read: raises DamagedFileError.
      warn: gets the lines.
      steps: those there are, if the caller has looked.

    Raises:
      UsageError: there is no checkpoint, or not the step asked for.
      DamagedFileError: the step asked for, or every one there is, cannot be read.
    """
    steps = finished_steps(folder) if steps is None else steps
    if not steps:
        raise UsageError(f'no checkpoint in "{folder}".')
    if step is not None:
        if step not in steps:
            raise UsageError(f'no checkpoint of step {step} in "{folder}"; there are {steps}.')
        return read(step)
    for candidate in reversed(steps):
        try:
            return read(candidate)
        except DamagedFileError as error:
            warn(f"passing over a damaged checkpoint: {error}")
    raise DamagedFileError(f'no checkpoint in "{folder}" can be read; the newest is {steps[-1]}.')


def unfinished(folder: str) -> list[str]:
    """Return the paths of checkpoints whose writing was cut off before they were published."""
    temporary = [name for name in list_names(folder) if _UNFINISHED in name]
    cut_off = [name for name in _numbered(folder) if not _published(folder, name)] if is_remote(folder) else []
    return [join(folder, name) for name in [*temporary, *cut_off]]


def strays(folder: str) -> list[str]:
    """Return the paths that have a step's name in a local folder and hold nothing of a checkpoint: empty, say."""
    if is_remote(folder):
        return []
    return [join(folder, name) for name in _numbered(folder) if not _published(folder, name)]


def _numbered(folder: str) -> list[str]:
    return [name for name in list_names(folder) if name.isdecimal() and name == str(int(name))]


def _published(folder: str, name: str) -> bool:
    """Local checkpoints appear by a rename; on an object store Orbax writes in place and `PUBLISHED` last.

    One that has lost parts is published too, so that whoever reads it says so.
    """
    if is_remote(folder):
        return exists(join(folder, name, PUBLISHED))
    return not {"_CHECKPOINT_METADATA", *ARRAY_ITEMS, *JSON_ITEMS}.isdisjoint(list_names(join(folder, name)))
