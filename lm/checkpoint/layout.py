"""Where checkpoints lie: `<folder>/<step>/`, published whole by a rename. No JAX here.

A checkpoint's items are separate: `params`, `frozen`, `opt_state` and `extra` (arrays, each absent
where empty), `data` and `meta` (JSON). Evaluation reads `params` alone.
"""

from lm.errors import UsageError
from lm.storage import exists, join, list_names

ARRAY_ITEMS = ("params", "frozen", "opt_state", "extra")
JSON_ITEMS = ("data", "meta")
_UNFINISHED = ".orbax-checkpoint-tmp"


def finished_steps(folder: str) -> list[int]:
    """Return the steps of the published checkpoints in a folder, oldest first."""
    return sorted(int(name) for name in list_names(folder) if name.isdigit())


def unfinished(folder: str) -> list[str]:
    """Return the paths of checkpoints whose writing was cut off before they were published."""
    return [join(folder, name) for name in list_names(folder) if _UNFINISHED in name]


def checkpoint_folder(path: str) -> str:
    """Return the folder that holds `<step>/` for a run's folder, its `checkpoints/`, or one step's own folder's parent.

    Raises:
      UsageError: there is no such folder.
    """
    path = path.rstrip("/")
    if not exists(path):
        raise UsageError(f'no checkpoint at "{path}". Give a run\'s folder (the --workdir of `lm train`).')
    nested = join(path, "checkpoints")
    return nested if exists(nested) else path
