"""Libraries that only the preparation of corpora needs, imported where they are used."""

import importlib
from types import ModuleType

from lm.errors import UsageError


def require(module: str) -> ModuleType:
    """Return a module of the extra `data`.

    Raises:
      UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"building a corpus needs the package of `{module}`: {error}. Install it with: pip install -e '.[data]'."
        ) from error
