"""Sources that read files of this machine: Python's own source, text and JSON lines."""

import glob
import gzip
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator

from lm.config import DataConfig
from lm.data.document import Document
from lm.errors import ConfigError, DamagedFileError, LmError, UsageError


def stdlib(config: DataConfig) -> Iterator[Document]:
    """The Python standard library's own source (about 12 MB), a document per file, without CPython's tests."""
    root = sysconfig.get_paths()["stdlib"]
    for path in stdlib_files(config):
        try:
            with open(path, encoding="utf-8") as file:
                yield Document(file.read(), os.path.relpath(path, root))
        except UnicodeDecodeError:
            continue  # a few files are in other encodings on purpose
        except OSError as error:
            raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


def text(config: DataConfig) -> Iterator[Document]:
    """UTF-8 text files, a document per file.

    Raises:
      UsageError: nothing is at `config.path`.
      DamagedFileError: a file is not UTF-8.
    """
    for path in text_files(config):
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:  # without a byte order mark, line ends kept
                content = file.read()
        except UnicodeDecodeError as error:
            raise DamagedFileError(f'"{path}" is not UTF-8 text: {error}. Convert it or leave it out.') from error
        except OSError as error:
            raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error
        yield Document(content, relative_name(path, config))


def jsonl(config: DataConfig) -> Iterator[Document]:
    """JSON lines (`.jsonl`, `.jsonl.gz`), a document per line, its text under `config.text_key`.

    Raises:
      UsageError: nothing is at `config.path`.
      DamagedFileError: a line is not a JSON object with that text; names file and line.
    """
    for path in jsonl_files(config):
        opener = gzip.open if path.endswith(".gz") else open
        number = 0
        try:
            with opener(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield Document(
                            _text_of_line(path, number, line, config.text_key),
                            f"{relative_name(path, config)}:{number}",
                        )
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedFileError(f'"{path}" is damaged after line {number}: {error}.') from error
        except OSError as error:
            raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


def _text_of_line(path: str, number: int, line: str, key: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DamagedFileError(f"{path}:{number} is not JSON: {error}.") from error
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise DamagedFileError(f'{path}:{number} has no text under "{key}" (config.data.text_key); it has: {found}.')
    return record[key]


def stdlib_files(config: DataConfig) -> list[str]:
    """Return the paths that `stdlib` reads, sorted."""
    del config
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    return _walk(sysconfig.get_paths()["stdlib"], (".py",), skipped)


def text_files(config: DataConfig) -> list[str]:
    """Return the paths that `text` reads: a file, a folder's files (recursive), or a glob's; sorted."""
    return config_files(config)


def jsonl_files(config: DataConfig) -> list[str]:
    """Return the paths that `jsonl` reads, sorted; of a folder only `.jsonl` and `.jsonl.gz`."""
    return config_files(config, (".jsonl", ".jsonl.gz"))


def python_version() -> str:
    """Return the running Python's version, which the `stdlib` source depends on."""
    return ".".join(map(str, sys.version_info[:3]))


def _walk(root: str, suffixes: tuple[str, ...], skipped: set[str] = frozenset()) -> list[str]:
    """Return files below a folder, sorted; hidden files and folders are left out."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        names = (name for name in files if not name.startswith("."))
        found += [os.path.join(folder, name) for name in names if not suffixes or name.endswith(suffixes)]
    return sorted(found)


def find_files(path: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Return a file, a folder's files (recursive, with one of the suffixes, none hidden) or a glob's, sorted.

    Raises:
      UsageError: there are none.
    """
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        files = _walk(path, suffixes)
    else:
        files = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not files:
        wanted = f" {' or '.join(suffixes)}" if os.path.isdir(path) and suffixes else ""
        raise UsageError(f'no{wanted} files at "{path}". Check the path.')
    return files


def config_files(config: DataConfig, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Return `find_files` of `config.path`."""
    if not config.path:
        raise ConfigError("config.data.path=None: expected a file, a folder or a glob.")
    return find_files(config.path, suffixes)


def relative_name(path: str, config: DataConfig) -> str:
    """Return a file's path below the folder that was asked for, else its name."""
    root = os.path.expanduser(config.path)
    return os.path.relpath(path, root) if os.path.isdir(root) else os.path.basename(path)


def stat_files(paths: list[str]) -> list[list]:
    """Return path, size and modification time of each file.

    Raises:
      LmError: one cannot be read.
    """
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error
        found.append([os.path.abspath(path), status.st_size, status.st_mtime_ns])
    return found
