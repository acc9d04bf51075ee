"""Readers: what turns a file of a raw corpus into records.

A reader is a function `read(path, source, skip)`: `path` is one of `input_files(source)`, `skip(where, reason)` is told
of single documents that cannot be used; damage of the file itself raises DamagedFileError after all records before it.
A module of readers may have a function `steps(source)`: the document steps that its records pass first.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from lm.corpus.config import SourceConfig
from lm.corpus.readers.inputs import InputFile, input_files, name_of
from lm.corpus.record import Record, Rejection
from lm.errors import ConfigError, did_you_mean
from lm.extensions import load_extension

__all__ = ["READERS", "InputFile", "Reader", "find_reader", "input_files", "name_of"]

READERS = {  # name: module and function
    "wikipedia": "wikipedia:read",
    "books": "books:read",
    "web": "web:read",
    "code": "code:read",
    "text": "plain:read_text",
    "jsonl": "plain:read_jsonl",
    "parquet": "plain:read_parquet",
}

Skip = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a source's inputs are read.

    Attributes:
      read: (path, source, skip) -> records, as this package's docstring says.
      steps: source -> document steps, each step(record) -> Rejection | None, that its records pass before all others.
    """

    read: Callable[[str, SourceConfig, Skip], Iterator[Record]]
    steps: Callable[[SourceConfig], list[Callable[[Record], Rejection | None]]]


def find_reader(name: str) -> Reader:
    """Return a built-in reader, or the function at "package.module:Name".

    Raises:
      ConfigError: there is none of this name, or the module cannot be imported.
    """
    if name in READERS:
        module_name, _, function = READERS[name].partition(":")
        module: Any = importlib.import_module(f"{__name__}.{module_name}")
        read = getattr(module, function)
    elif ":" in name:
        read = load_extension("sources.*.reader", name)
        module = sys.modules[name.partition(":")[0]]
    else:
        raise ConfigError(
            f'config.sources.*.reader={name!r}: expected one of {", ".join(READERS)}, or "package.module:Name".'
            f"{did_you_mean(name, READERS)}"
        )
    return Reader(read, getattr(module, "steps", lambda source: []))
