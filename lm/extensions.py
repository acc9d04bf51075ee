"""Code named in a config: "package.module:Name"."""

import hashlib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from lm.errors import ConfigError


def load_extension(field: str, name: str) -> Any:
    """Return the object at "package.module:Name".

    Args:
      field: the config field that names it, for the error.
      name: as written in the config.

    Raises:
      ConfigError: the module cannot be imported, or has no such callable.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"config.{field}={name!r}: {error}. The module must be installed, in this folder, or beside the config file."
        ) from error
    if not callable(found):
        raise ConfigError(f"config.{field}={name!r}: expected a class or function, got {type(found).__name__}.")
    return found


def extension_hashes(names: Iterable[str]) -> list[str]:
    """Return the sha256 of the file of every "package.module:Name" among some names: changes when its code does.

    Raises:
      ConfigError: as `load_extension`.
    """
    hashes = []
    for name in names:
        if ":" in name:
            load_extension("sources", name)
            path = inspect.getsourcefile(importlib.import_module(name.partition(":")[0]))
            with open(path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes
