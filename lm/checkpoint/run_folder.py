"""A run's folder as other rooms find it. No JAX here."""

import os
from collections.abc import Sequence
from typing import Any

from lm.checkpoint.ranking import best_step
from lm.errors import UsageError
from lm.storage import exists, is_remote, join, read_object

_STEPS = "checkpoints"


def read_run_info(workdir: str, required: Sequence[str] = ("config", "fingerprint", "data")) -> dict[str, Any]:
    """Return a run's `config.json`.

    Args:
      workdir: the run's folder.
      required: keys that the caller cannot do without.

    Raises:
      UsageError: the folder holds no run.
      DamagedFileError: the file is not a JSON object with the required keys.
    """
    path = join(workdir, "config.json")
    if not exists(path):
        raise UsageError(f'no run in "{workdir}": it has no config.json. Give the --workdir of an `lm train`.')
    return read_object(path, *required)


def locate(path: str, step: int | str | None = None) -> tuple[str, str, int | None]:
    """Return what a path to a checkpoint means: the run's folder, the folder of its steps, and the step.

    Args:
      path: a run's folder, or one step in it: `runs/tiny`, `runs/tiny/checkpoints` or `runs/tiny/checkpoints/400`.
      step: the one asked for, or `best`: by its validation; None: the path's, or else the newest.

    Raises:
      UsageError: `step` is another one than the path's, or no checkpoint was evaluated.
    """
    trimmed = path.rstrip("/") if is_remote(path) else os.path.abspath(path)
    parent, _, name = trimmed.rpartition("/")
    if exists(join(path, "config.json")) or not (name.isdigit() or name == _STEPS):
        parent, trimmed, name = path, join(path, _STEPS), _STEPS
    if name == _STEPS:
        return parent, trimmed, best_step(trimmed) if step == "best" else step
    if step is not None and step != int(name):
        raise UsageError(f'"{path}" is the checkpoint of step {int(name)}; leave out --step {step}, or give the run.')
    # One that was copied out of its run may have the config beside it.
    return parent.removesuffix(f"/{_STEPS}"), parent, int(name)
