"""Code named in a config: "package.module:Name"."""

import importlib
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
