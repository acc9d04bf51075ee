"""Where checkpoints lie: `<folder>/<step>/`, published whole by a rename. No JAX here.

A checkpoint's items are separate: `params`, `frozen`, `opt_state` and `extra` (arrays, each absent
where empty), `data` and `meta` (JSON). Evaluation reads `params` alone.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from lm.errors import DamagedFileError, UsageError
from lm.storage import exists, is_remote, join, list_names

ARRAY_ITEMS = ("params", "frozen", "opt_state", "extra")
JSON_ITEMS = ("data", "meta")
T = TypeVar("T")
_UNFINISHED = ".orbax-checkpoint-tmp"


def finished_steps(folder: str) -> list[int]:
    """Return the steps of the published checkpoints in a folder, oldest first."""
    return sorted(int(name) for name in list_names(folder) if name.isdigit() and _published(folder, name))


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
    names = list_names(folder)
    cut_off = [name for name in names if name.isdigit() and not _published(folder, name)]
    return [join(folder, name) for name in [*(name for name in names if _UNFINISHED in name), *cut_off]]


def _published(folder: str, name: str) -> bool:
    """Local checkpoints appear by a rename; on an object store Orbax writes in place and this file last."""
    return not is_remote(folder) or exists(join(folder, name, "commit_success.txt"))
