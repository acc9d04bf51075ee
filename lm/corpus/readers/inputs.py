"""The files behind a source's paths: globs and folders expanded, URLs listed or downloaded, each under its own name."""

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterator

from lm import storage
from lm.corpus.config import SourceConfig
from lm.data.document import Progress
from lm.data.download import RemoteFile, fetch, record
from lm.errors import ConfigError, LmError, UsageError

_COMPRESSED = r"(?:\.(?:gz|bz2|xz|zst))?"
_FITTING = {  # what a reader takes out of a folder; other readers take every file that is not hidden
    "wikipedia": re.compile(rf"(?i).*\.xml{_COMPRESSED}"),
    "books": re.compile(rf"(?i).*\.txt{_COMPRESSED}"),
    "web": re.compile(rf"(?i).*\.(?:warc|wet){_COMPRESSED}"),
    "text": re.compile(rf"(?i).*\.(?:txt|text|md|rst){_COMPRESSED}"),
    "jsonl": re.compile(rf"(?i).*\.(?:jsonl|ndjson|json){_COMPRESSED}"),
    "parquet": re.compile(r"(?i).*\.parquet"),
    "code": re.compile(r"(?i).*\.(?:tar|zip|tgz|tbz2?|txz|tar\.(?:gz|bz2|xz|zst))"),  # where a folder holds archives
}
VERSION_CONTROL = (".git", ".hg", ".svn")


@dataclasses.dataclass(frozen=True)
class InputFile:
    """One input of a reader.

    Attributes:
      path: what the reader opens: a local file, a folder (code), or a URL that fsspec knows.
      size: in bytes, as stored; of a folder, all its files.
      sha256: what it must hash to; None: not said.
      label: what the card calls it: its path (or URL) from where all of the source's paths part, as `name_of` gives it.
    """

    path: str
    size: int
    sha256: str | None
    label: str


def input_files(source: SourceConfig, name: str = "", progress: Progress | None = None) -> list[InputFile]:
    """Return what a source's paths stand for, in their order, each path's files sorted, none twice.

    A path is a file, a folder (its files of a fitting suffix, at any depth, none hidden; to the reader `code` the
    folder is one input, unless it holds nothing but archives), a glob of these, an http(s) URL (downloaded to the cache
    at its first use), or a file, folder or glob at any other URL that fsspec knows (of code, the archives in a folder).

    Args:
      source: its `paths`, `sha256` and `reader`.
      name: what the config calls it, for errors.
      progress: called while files are downloaded.

    Raises:
      ConfigError: no paths, or `sha256` are not as many as there are files ("" for a file that has none).
      UsageError: nothing is at a path, or a URL cannot be read.
      DamagedFileError: a download is not what its sha256 says.
      LmError: a store or a server fails.
    """
    field = f"config.sources.{name}" if name else "config.sources"
    if not source.paths:
        raise ConfigError(f"{field}.paths=(): expected files, folders, globs or URLs.")
    found = list(dict.fromkeys(path for pattern in source.paths for path in _expand(pattern, source.reader)))
    if source.sha256 and len(source.sha256) != len(found):
        raise ConfigError(
            f'{field}.sha256 has {len(source.sha256)} entries and its paths {len(found)} files: expected one each, "" '
            f"for a file whose checksum is not known. The files: {_some(found)}."
        )
    checksums = [value.lower() or None for value in source.sha256] or [None] * len(found)
    return [_input(path, sha256, source, progress) for path, sha256 in zip(found, checksums, strict=True)]


def name_of(path: str, source: SourceConfig) -> str:
    """Return the name of one of a source's inputs, to start its records' ids with: the same on every machine.

    It is the path from where all of the source's paths part, so no two inputs of a source share one, and no input that
    is added below those paths changes another's.
    """
    path = next((url for url in source.paths if _is_http(url) and path == _download(url, None)[1]), path)
    parts = _parts(path)
    levels = zip(parts, *(_root(pattern) for pattern in source.paths), strict=False)  # as deep as the shallowest
    common = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
    return "/".join(parts[common:]) or os.path.basename(os.path.abspath(path))


def _root(pattern: str) -> list[str]:
    """Return the folder of a path, or of a glob that part which has no magic."""
    parts = _parts(pattern)
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), None)
    return parts[:-1] if magic is None or _is_http(pattern) else parts[:magic]


def _parts(path: str) -> list[str]:
    if not storage.is_remote(path):
        path = os.path.normpath(os.path.expanduser(path)).replace(os.sep, "/")
    return [part for part in path.split("/") if part not in ("", ".")]


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _expand(pattern: str, reader: str) -> list[str]:
    """Return the inputs at one path.

    Raises:
      UsageError: there are none.
    """
    if _is_http(pattern):
        return [pattern]
    if storage.is_remote(pattern):
        found = _expand_remote(pattern, reader)
    else:
        pattern = os.path.expanduser(pattern)
        # A name with brackets in it may be what is there.
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        with _readable(pattern):
            found = [path for match in matches for path in _inside(match, reader)]
    if not found:
        fitting = f" that the reader {reader} takes" if reader in _FITTING else ""
        raise UsageError(f'nothing{fitting} is at "{pattern}". Check the path.')
    return found


def _inside(path: str, reader: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    if reader == "code":
        entries = sorted(os.path.join(path, entry) for entry in os.listdir(path) if not entry.startswith("."))
        archives = all(_fits(os.path.basename(entry), "code") and os.path.isfile(entry) for entry in entries)
        return entries if archives else [path]
    found = []
    for folder, _, files in os.walk(path, onerror=_raise):
        found += [os.path.join(folder, entry) for entry in files]
    return sorted(file for file in found if _fits(os.path.relpath(file, path).replace(os.sep, "/"), reader))


def _raise(error: OSError) -> None:
    raise error


def _fits(inside: str, reader: str) -> bool:
    """True for a file that a reader takes out of a folder, by its path there."""
    hidden = any(part.startswith(".") for part in inside.split("/"))
    return not hidden and (reader not in _FITTING or _FITTING[reader].fullmatch(inside.rsplit("/", 1)[-1]) is not None)


def _expand_remote(url: str, reader: str) -> list[str]:
    with storage.of_store(url, "read"):
        system = storage.filesystem(url)
        inner = system._strip_protocol(url)
        try:
            if system.isfile(url):
                found = [inner]
            elif glob.has_magic(url):
                found = [entry for entry in system.glob(url) if system.isfile(entry)]
            else:
                found = [entry for entry in system.find(url) if _fits(entry[len(inner) :].strip("/"), reader)]
        except FileNotFoundError:
            found = []
    scheme = url.split("://", 1)[0]
    return sorted(f"{scheme}://{entry.lstrip('/')}" for entry in found)


def _input(path: str, sha256: str | None, source: SourceConfig, progress: Progress | None) -> InputFile:
    if _is_http(path):
        url = path
        file, path = _download(url, sha256)
        fetch(file, os.path.dirname(path), progress)
        known = record(file, os.path.dirname(path))
        return InputFile(path, known["bytes"], known["sha256"], name_of(url, source))
    if os.path.isdir(path) and sha256:
        raise ConfigError(f'"{path}" is a folder, which has no sha256: give "" for it in sha256.')
    return InputFile(path, _size(path), sha256, name_of(path, source))


def _download(url: str, sha256: str | None) -> tuple[RemoteFile, str]:
    """Return a file at a URL and where it is kept."""
    file = RemoteFile(urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"), sha256)
    folder = os.path.join(storage.cache_root(), "inputs", hashlib.sha256(url.encode()).hexdigest()[:16])
    return file, os.path.join(folder, file.name)


def _size(path: str) -> int:
    if storage.is_remote(path):
        with storage.of_store(path, "read"):
            return storage.filesystem(path).size(path) or 0
    with _readable(path):
        if not os.path.isdir(path):
            return os.path.getsize(path)
        return sum(os.lstat(os.path.join(path, file)).st_size for file in folder_files(path))


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LmError(f'cannot read "{error.filename or path}": {error.strerror or error}.') from error


def folder_files(path: str) -> Iterator[str]:
    """Yield the files in a folder of code by path below it, in the order of their names: no links, nothing of git's.

    Raises:
      LmError: a folder cannot be read.
    """
    with _readable(path):
        for folder, folders, files in os.walk(path, onerror=_raise):
            folders[:] = sorted(entry for entry in folders if entry not in VERSION_CONTROL)
            for entry in sorted(entry for entry in files if entry not in VERSION_CONTROL):
                if not os.path.islink(os.path.join(folder, entry)):
                    yield os.path.relpath(os.path.join(folder, entry), path).replace(os.sep, "/")


def _some(paths: list[str]) -> str:
    return ", ".join(f'"{path}"' for path in paths[:5]) + (f", and {len(paths) - 5} more" if len(paths) > 5 else "")
