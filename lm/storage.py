"""Files and folders, local or on an object store, through one small set of functions.

A path is a string: plain (`runs/tiny`) or a URL that fsspec knows (`gs://bucket/runs/tiny`,
`s3://…`, `memory://…`). Object stores have no append and no rename, so the two things that
need them are functions here: `write_atomic` and `LineLog`.
"""

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lm.errors import DamagedFileError, LmError, UsageError


def cache_root(explicit: str | None = None) -> str:
    """Return where prepared data, tokenizers and compiled programs are kept: $LM_CACHE or ~/.cache/lm."""
    return explicit or os.environ.get("LM_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "lm")


def is_remote(path: str) -> bool:
    """True for a URL such as `gs://bucket/x`."""
    return "://" in path


def join(path: str, *parts: str) -> str:
    """Join path parts with `/` for URLs and the operating system's separator otherwise."""
    if is_remote(path):
        return "/".join([path.rstrip("/"), *(part.strip("/") for part in parts)])
    return os.path.join(path, *parts)


def filesystem(path: str):
    """Return fsspec's filesystem for a URL.

    Raises:
      UsageError: the scheme is unknown or its package (s3fs, gcsfs) is not installed.
    """
    import fsspec

    scheme = path.split("://", 1)[0]
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs with a traceback what it also raises
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)  # Orbax writes beside fsspec
    except (ImportError, ValueError) as error:
        extra = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}.get(scheme)
        hint = f" Install it with: pip install -e '.[{extra}]'." if extra else ""
        raise UsageError(f'cannot open "{path}": {error}.{hint}') from error


@contextlib.contextmanager
def of_store(path: str, doing: str) -> Iterator[None]:
    """Turn what an object store's client raises into one line; a file that is not there stays FileNotFoundError.

    Args:
      path: a URL.
      doing: `read`, `write`, `remove`.

    Raises:
      LmError: no such bucket, no credentials, no right, no answer.
    """
    try:
        yield
    except (LmError, FileNotFoundError):
        raise
    except Exception as error:  # those of botocore, aiohttp and gcsfs have no common base
        text = " ".join(str(error).split()) or type(error).__name__
        raise LmError(f'cannot {doing} "{path}": {text[:300].rstrip(".")}.') from error


def exists(path: str) -> bool:
    """True if a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(path)
    with of_store(path, "read"):
        return filesystem(path).exists(path)


def is_folder(path: str) -> bool:
    """True if a folder is there."""
    if not is_remote(path):
        return os.path.isdir(path)
    with of_store(path, "read"):
        return filesystem(path).isdir(path)


def list_names(path: str) -> list[str]:
    """Return the sorted names in a folder; an absent folder has none."""
    if is_remote(path):
        with of_store(path, "read"):
            try:
                entries = filesystem(path).ls(path, detail=False)
            except FileNotFoundError:  # a store's folder is there for as long as something is in it
                return []
            return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def make_folder(path: str) -> None:
    """Create a folder and its parents and check that files can be written in it.

    Raises:
      LmError: the folder cannot be created or written.
    """
    probe = join(path, f".write-{uuid.uuid4().hex}")
    if is_remote(path):  # stores have no folders; `makedirs` would make a bucket of a mistyped name
        write_atomic(probe, b"")
        with of_store(path, "write"):
            filesystem(path).rm_file(probe)
        return
    try:
        os.makedirs(path, exist_ok=True)
        with open(probe, "wb"):
            pass
        os.remove(probe)
    except OSError as error:
        raise LmError(
            f'cannot write in "{path}": {error.strerror or error}. '
            "Choose a folder that you may write to, with room left."
        ) from error


@contextlib.contextmanager
def locked(path: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a local folder for this process within the block, or until it dies.

    Object stores and some network file systems have no locks: there nothing is held.

    Args:
      path: the folder.
      waiting: called before waiting for a process that holds it; None: do not wait.

    Raises:
      UsageError: another process holds it, and `waiting` is None.
    """
    if is_remote(path):
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)  # the folder itself: no file is left behind
    try:
        _lock(descriptor, path, waiting)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str, waiting: Callable[[], None] | None) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if waiting:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        raise UsageError(f'another process uses "{path}". Wait for it, or choose another --workdir.') from error
    except OSError:  # some network file systems have no locks
        return


def read_bytes(path: str) -> bytes:
    """Read a whole file.

    Raises:
      UsageError: there is no such file, or it is a folder.
      LmError: it exists but cannot be read.
    """
    try:
        if is_remote(path):
            with of_store(path, "read"):
                return filesystem(path).cat_file(path)
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f'no file "{path}". Check the path.') from error
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


def read_text(path: str) -> str:
    """Read a whole UTF-8 file; raises as `read_bytes`, and LmError if it is not UTF-8."""
    return _utf8(path, read_bytes(path))


def _utf8(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LmError(f'"{path}" is not UTF-8 text: {error}.') from error


def read_object(path: str, *required: str) -> dict[str, Any]:
    """Read a JSON object; raises as `read_text`, and DamagedFileError if it is none or lacks a required key."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}.') from error
    if not isinstance(content, dict):
        raise DamagedFileError(f'"{path}" is damaged: it does not hold a JSON object.')
    if missing := sorted(set(required) - set(content)):
        raise DamagedFileError(f'"{path}" is damaged: it has no {", ".join(missing)}.')
    return content


def write_atomic(path: str, data: bytes | str) -> None:
    """Write a whole file so that a reader sees either the old content or the new, never a part.

    Raises:
      LmError: the file cannot be written (read-only folder, full disk).
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    try:
        if is_remote(path):
            with of_store(path, "write"):
                filesystem(path).pipe_file(path, payload)  # object stores publish a put whole
            return
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
    except OSError as error:
        raise LmError(f'cannot write "{path}": {error.strerror or error}.') from error


def remove(path: str) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
      LmError: it cannot be removed.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if not is_remote(path):
                os.remove(path)
                return
            with of_store(path, "remove"):
                filesystem(path).rm_file(path)
    except OSError as error:
        raise LmError(f'cannot remove "{path}": {error.strerror or error}.') from error


def create(path: str, data: bytes | str) -> bool:
    """Write a whole file unless there is one, as one step: of several that try, one gets True.

    On an object store that knows no conditional put, two at the same instant may both get it.

    Raises:
      LmError: the file cannot be written.
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    if is_remote(path):
        with of_store(path, "write"):
            try:
                filesystem(path).pipe_file(path, payload, mode="create")
            except FileExistsError:
                return False
        return True
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    write_atomic(temporary, payload)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise LmError(f'cannot write "{path}": {error.strerror or error}.') from error
    finally:
        os.remove(temporary)
    return True


def upload(folder: str, url: str, last: str) -> None:
    """Copy a local folder to an object store, its file `last` after all others: who sees that one sees all.

    Raises:
      LmError: the store cannot be written.
    """
    inside = [os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names]
    first = [name for name in inside if name != last]
    with of_store(url, "write"):
        target = filesystem(url)
        target.put([os.path.join(folder, name) for name in first], [join(url, name) for name in first])
        target.put_file(os.path.join(folder, last), join(url, last))


def download(url: str, path: str) -> None:
    """Copy one file from an object store to a local one that is there whole or not at all.

    Raises:
      FileNotFoundError: the store has no such file.
      LmError: the store cannot be read, or the file not be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with of_store(url, "read"):
            filesystem(url).get_file(url, temporary)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise LmError(f'cannot write "{path}": {error.strerror or error}.') from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


class LineLog:
    """An append-only file of lines: one file locally, numbered parts on an object store.

    `metrics.jsonl` is one: locally lines are appended and flushed; on an object store every
    `flush` writes a new part `metrics.00000012.jsonl`, because a store cannot append.
    """

    def __init__(self, path: str):
        self._path = path
        self._pending: list[str] = []
        self._next_part = 1 + max((number for number, _ in self._parts()), default=-1)

    def _parts(self) -> list[tuple[int, str]]:
        if not is_remote(self._path):
            return []
        folder, name = self._path.rsplit("/", 1)
        stem, extension = os.path.splitext(name)
        pattern = re.compile(re.escape(stem) + r"\.(\d{8})" + re.escape(extension))
        matches = ((pattern.fullmatch(entry), entry) for entry in list_names(folder))
        return [(int(match[1]), join(folder, entry)) for match, entry in matches if match]

    def read(self) -> list[str]:
        """Return all lines in order, without line ends; a torn last line is dropped."""
        if is_remote(self._path):
            paths = [path for _, path in self._parts()]
            with of_store(self._path, "read"):  # side by side: a month has tens of thousands
                parts = filesystem(self._path).cat(paths) if paths else {}
            text = "".join(_utf8(path, part) for path, part in sorted(parts.items()))
        else:
            text = read_text(self._path) if exists(self._path) else ""
        return text.split("\n")[:-1]

    def replace(self, lines: Iterable[str]) -> None:
        """Replace the whole content (used when a resumed run cuts what came after its checkpoint)."""
        text = "".join(line + "\n" for line in lines)
        if not is_remote(self._path):
            write_atomic(self._path, text)
            return
        old = self._parts()
        write_atomic(self._part_path(self._next_part), text)
        self._next_part += 1
        for _, path in old:
            with of_store(path, "remove"):
                filesystem(path).rm_file(path)

    def _part_path(self, number: int) -> str:
        stem, extension = os.path.splitext(self._path)
        return f"{stem}.{number:08d}{extension}"

    def append(self, line: str) -> None:
        """Queue one line (without its line end) for the next `flush`."""
        self._pending.append(line + "\n")

    def flush(self) -> None:
        """Write the queued lines.

        Raises:
          LmError: the file cannot be written; the lines stay queued.
        """
        if not self._pending:
            return
        text = "".join(self._pending)
        if is_remote(self._path):
            write_atomic(self._part_path(self._next_part), text)
            self._next_part += 1
        else:
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise LmError(f'cannot write "{self._path}": {error.strerror or error}.') from error
        self._pending.clear()
