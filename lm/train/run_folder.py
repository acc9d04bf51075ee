"""A run's folder as other rooms find it."""

import json
from collections.abc import Sequence
from typing import Any

from lm.errors import DamagedFileError, UsageError
from lm.storage import exists, join, read_text


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
    try:
        info = json.loads(read_text(path))
    except ValueError as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}.') from error
    if not isinstance(info, dict):
        raise DamagedFileError(f'"{path}" is damaged: it does not hold a JSON object.')
    missing = sorted(set(required) - set(info))
    if missing:
        raise DamagedFileError(f'"{path}" is damaged: it has no {", ".join(missing)}.')
    return info
