"""One file over HTTP(S): continued where it stopped, verified, whole or not at all.

Beside `FILE` lie `FILE.json` (its URL, size and sha256: the record of the first download); while it arrives
`FILE.part` (what is there already) and `FILE.part.json` (of which version of the file); and `FILE.corrupt`, if
what arrived was refused. urllib does the talking, so proxies work as usual ($https_proxy, $no_proxy).
"""

import contextlib
import dataclasses
import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from lm import storage
from lm.data.document import Progress
from lm.errors import DamagedFileError, LmError, UsageError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30  # without a byte
_PATIENCE = 8  # attempts in a row that bring nothing new; with the waits between them about three minutes
_BACKOFF_SECONDS = 1.0  # the first wait, doubled at each such attempt
_LONGEST_WAIT_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file at a URL."""

    url: str
    sha256: str | None = None  # what it must hash to; None: recorded at the first download
    bytes: int | None = None  # its size, where it is known beforehand

    @property
    def name(self) -> str:
        """What it is called here: the last part of the URL's path."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path)
        return re.sub(r"[^\w.+-]", "_", path.rstrip("/").rsplit("/", 1)[-1]).lstrip(".") or "file"


class _TryAgain(Exception):
    """An attempt that failed in a way that another may not; `after`: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


class _Unreachable(_TryAgain):
    """No connection came about."""


def fetch(file: RemoteFile, folder: str, progress: Progress | None = None) -> str:
    """Return the file's path in a folder, after downloading what is missing of it and checking its sha256.

    Args:
      file: what to download.
      folder: a local folder, held while downloading: another process that wants it waits.
      progress: called as work goes on.

    Raises:
      UsageError: no network, no such file at the URL, access refused, or the folder is not local.
      DamagedFileError: size or sha256 are wrong; what arrived is kept as `FILE.corrupt`.
      LmError: the server keeps failing, or the disk is full; `FILE.part` is kept for the next start.
    """
    if storage.is_remote(folder):
        raise UsageError(
            f'downloads are kept in a local folder, not in "{folder}". Set $LM_CACHE or config.data.cache.'
        )
    progress = progress or (lambda *_: None)
    path = os.path.join(folder, file.name)
    if not os.path.exists(path):
        storage.make_folder(folder)
        with storage.locked(folder, lambda: progress(f"wait for another process that downloads {file.name}", 0)):
            if not os.path.exists(path):
                _attempts(file, path, progress)
                _verify(file, path + ".part", path, progress)
                os.replace(path + ".part", path)
                _remove(path + ".part.json")
                return path
    _verify(file, path, path, progress)
    return path


def record(file: RemoteFile, folder: str) -> dict[str, Any]:
    """Return what is known of a file: `url`, `sha256`, `bytes` (None: not yet) and where the checksum is from."""
    there = _read_json(os.path.join(folder, file.name) + ".json")
    if there.get("url") != file.url or (file.sha256 and there.get("sha256") != file.sha256):
        there = {}
    return {
        "url": file.url,
        "sha256": file.sha256 or there.get("sha256"),
        "bytes": file.bytes or there.get("bytes"),
        "checksum": "given" if file.sha256 else "recorded at the first download",
    }


def _attempts(file: RemoteFile, path: str, progress: Progress) -> None:
    """Download into `FILE.part`, trying again while that helps."""
    part = path + ".part"
    at_start = most = _size(part)
    failures = 0
    while True:
        try:
            return _transfer(file, part, progress)
        except _TryAgain as error:
            if isinstance(error, _Unreachable) and most == at_start:
                raise UsageError(
                    f'cannot download {file.url}: {error}. Check the network and the URL, or put the file at "{path}".'
                ) from error
            failures = 0 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures > _PATIENCE:
                raise LmError(
                    f"cannot download {file.url}: {error}, {failures} times without a new byte. "
                    f'What arrived is kept in "{part}"; the same command continues.'
                ) from error
            doubled = _BACKOFF_SECONDS * 2**failures * random.uniform(0.5, 1)
            wait = min(_LONGEST_WAIT_SECONDS, doubled if error.after is None else error.after)
            progress(f"download {file.name}: {error}; trying again in {wait:.0f} s", most)
            time.sleep(wait)


def _transfer(file: RemoteFile, part: str, progress: Progress) -> None:
    """Bring `FILE.part` to its whole length in one request."""
    have, version = _size(part), _read_json(part + ".json")
    if version.get("url") != file.url:
        have = 0
    if have and have == version.get("bytes"):
        return
    validator = version.get("etag") or version.get("last_modified")
    headers = {"User-Agent": "lm (urllib)", "Accept-Encoding": "identity"}
    if have and (validator or file.sha256):  # else nothing could tell whether two versions were mixed
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": validator} if validator else {}
    with _open(urllib.request.Request(file.url, headers=headers), part) as response:
        answered, start = _describe(file.url, response)
        changed = any(version.get(name) not in (None, value) for name, value in answered.items() if value is not None)
        if start and (start != have or changed):
            _remove(part)
            raise _TryAgain("the file there changed meanwhile")
        if not start:
            _remove(part)
        have, total = start, answered["bytes"]
        _check_size(file, total)
        _check_room(part, (total or 0) - have)
        with _writing(part), open(part, "ab" if have else "wb") as out:
            storage.write_atomic(part + ".json", json.dumps({**version, **answered} if have else answered))
            while chunk := _read(response):
                out.write(chunk)
                out.flush()  # a process that is killed loses nothing that arrived
                have += len(chunk)
                progress(f"download {file.name}", have, total, "bytes")
    if total is not None and have < total:
        raise _TryAgain(f"the connection dropped at {have:,} of {total:,} bytes")
    _check_size(file, have)
    storage.write_atomic(part + ".json", json.dumps({**answered, "bytes": have}))


def _open(request: urllib.request.Request, part: str):
    try:
        return urllib.request.build_opener().open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        answer = f"the server answered {error.code} {_line(error.reason)}"
        if error.code == 416:  # the part is longer than the file
            _remove(part)
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _TryAgain(answer, _retry_after(error.headers.get("Retry-After"))) from error
        raise UsageError(
            f"cannot download {request.full_url}: {answer}. Check the URL and whether it is public."
        ) from error
    except urllib.error.URLError as error:
        raise _Unreachable(_line(getattr(error.reason, "strerror", None) or error.reason)) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise UsageError(f"cannot download {request.full_url}: {_line(error)}. Check the URL.") from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(_line(error)) from error


def _line(reason: Any) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def _read(response) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(f"the connection dropped ({_line(error)})") from error


def _describe(url: str, response) -> tuple[dict[str, Any], int]:
    """Return which version of the file a response belongs to, and at which byte its body starts."""
    etag, length = response.headers.get("ETag"), response.headers.get("Content-Length") or ""
    start, total = 0, int(length) if length.isdigit() else None
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
        start, total = (int(match[1]), int(match[2]) if match[2] != "*" else None) if match else (-1, None)
    answered = {
        "url": url,
        "etag": None if etag is None or etag.startswith("W/") else etag,  # a weak one does not promise the same bytes
        "last_modified": response.headers.get("Last-Modified"),
        "bytes": total,
    }
    return answered, start


def _retry_after(text: str | None) -> float | None:
    """Return the seconds that a Retry-After header means: a number or an HTTP date."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _check_size(file: RemoteFile, total: int | None) -> None:
    if file.bytes is not None and total is not None and total != file.bytes:
        raise DamagedFileError(
            f"{file.url} has {total:,} bytes, expected {file.bytes:,}: it is truncated or another file. Refused."
        )


def _check_room(part: str, needed: int) -> None:
    free = shutil.disk_usage(os.path.dirname(part)).free
    if needed > free:
        raise LmError(
            f'"{part}" needs {needed:,} more bytes and the disk has {free:,}. Make room, or choose another $LM_CACHE.'
        )


@contextlib.contextmanager
def _writing(part: str):
    try:
        yield
    except OSError as error:
        raise LmError(
            f'cannot write "{part}": {error.strerror or error}. What arrived is kept; the same command continues.'
        ) from error


def _verify(file: RemoteFile, actual: str, path: str, progress: Progress) -> None:
    """Check the content of `actual` (`FILE` or `FILE.part`) and record it; a wrong one is set aside.

    Raises:
      DamagedFileError: the sha256 is not the one given, or not that of the first download.
    """
    known = record(file, os.path.dirname(path))
    digest, done = hashlib.sha256(), 0
    try:
        with open(actual, "rb") as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress(f"verify {file.name}", done, known["bytes"], "bytes")
    except OSError as error:
        raise LmError(f'cannot read "{actual}": {error.strerror or error}.') from error
    if known["sha256"] is not None and digest.hexdigest() != known["sha256"]:
        os.replace(actual, path + ".corrupt")
        _remove(path + ".part.json")
        accept = "" if file.sha256 else f' If it was meant to change, delete "{path}.json".'
        raise DamagedFileError(
            f"{file.url} has sha256 {digest.hexdigest()}, expected {known['sha256']} ({known['checksum']}): refused and "
            f'set aside as "{path}.corrupt".{accept} The same command downloads it again.'
        )
    known |= {"sha256": digest.hexdigest(), "bytes": done}
    if _read_json(path + ".json") != known:
        with contextlib.suppress(LmError):  # a cache that is only read costs the next start a hash
            storage.write_atomic(path + ".json", json.dumps(known, indent=1) + "\n")


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read_bytes(path))
    except (LmError, ValueError):  # absent, or torn by a crash: as if it were not there
        return {}
    return content if isinstance(content, dict) else {}


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
