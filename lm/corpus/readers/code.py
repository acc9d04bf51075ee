"""The reader `code`: folders of source code, git checkouts and archives, a record per file.

Every file of a fitting size becomes a record, so that what the rules of `lm.corpus.readers.code_rules` drop is counted
there. A file's licence is the one that its header names, else that of the nearest licence file upwards. Nothing is
extracted to disk, and links are not followed.
"""

import codecs
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from lm import storage
from lm.corpus.config import SourceConfig
from lm.corpus.readers import Skip, licenses
from lm.corpus.readers.code_rules import steps  # noqa: F401  (what a reader's module may have)
from lm.corpus.readers.inputs import VERSION_CONTROL, folder_files, name_of
from lm.corpus.readers.languages import language_of
from lm.corpus.readers.opening import EXPANSION_FLOOR, MAX_EXPANSION, open_input
from lm.corpus.record import Record
from lm.errors import DamagedFileError, LmError

MAX_FILE_BYTES = 1 << 20  # The Stack's limit (arXiv 2211.15533)
_SNIFFED = 8000  # bytes in which a zero makes a file binary, as to git
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TARS = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_META_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_META_BYTES = 1 << 20  # of a tar's long names and extended headers, which tarfile reads whole


def read(path: str, source: SourceConfig, skip: Skip) -> Iterator[Record]:
    """Yield a record per file: its path in the repository under `path`, its language and its licence in the metadata.

    Binary files have no text and `binary` in the metadata.

    Args:
      path: a folder, a tar (compressed or not), a zip, or a single file.
      source: its `license` is that of files for which no licence is found.
      skip: is told of files that are too large, cannot be read, or are not UTF-8.

    Raises:
      UsageError: nothing is there.
      LmError: it cannot be read.
      DamagedFileError: an archive is truncated, corrupt, or expands beyond the limit.
    """
    name = name_of(path, source)
    found = _licenses(path, name)
    for inside, content in _files(path, name, skip, lambda inside: True):
        where = f"{name}/{inside}" if inside else name
        inside = inside or name.rsplit("/", 1)[-1]
        metadata = {"path": inside}
        if b"\0" in content[:_SNIFFED] and not content.startswith(_UTF16):
            yield Record(where, "", metadata=metadata | {"binary": True})
            continue
        try:
            text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
        except UnicodeDecodeError as error:
            skip(where, f"not UTF-8 at byte {error.start:,}")
            continue
        own = None if _is_license(inside) else licenses.license_of_header(text)
        metadata["license"] = own or _nearest(inside, found) or source.license or licenses.UNKNOWN
        if language := language_of(inside, text):
            metadata["language"] = language
        yield Record(where, text, metadata=metadata)


def _is_license(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return licenses.is_license_file(name) and language_of(name) in (None, "Markdown", "reStructuredText")


def _licenses(path: str, name: str) -> dict[str, str]:
    """Return the licence of each folder that holds licence files, by path; of a damaged archive as far as it goes."""
    folders: dict[str, list[tuple[str, str]]] = {}
    try:
        for inside, content in _files(path, name, lambda where, reason: None, _is_license):
            folder, _, base = inside.rpartition("/")
            folders.setdefault(folder, []).append((base, content.decode("utf-8", "replace")))
    except DamagedFileError:  # reading the files says it again, after what comes before
        pass
    return {folder: licenses.license_of_folder(found) for folder, found in folders.items()}


def _nearest(path: str, found: dict[str, str]) -> str | None:
    folder = path
    while folder:
        folder = folder.rpartition("/")[0]
        if folder in found:
            return found[folder]
    return None


def _files(path: str, name: str, skip: Skip, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the wanted files in a folder or an archive, or of a single file under the path ""."""

    def fits(inside: str, size: int) -> bool:
        if size > MAX_FILE_BYTES:
            skip(f"{name}/{inside}".rstrip("/"), f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return size <= MAX_FILE_BYTES

    if not storage.is_remote(path) and os.path.isdir(path):
        return _in_folder(path, name, skip, wanted, fits)
    with open_input(path) as stream:
        start = stream.read(512)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _in_zip(path, name, skip, wanted, fits)
    if start[257:262] == b"ustar" or path.lower().endswith(_TARS):
        return _in_tar(path, name, skip, wanted, fits)
    return _alone(path, fits) if wanted(name.rsplit("/", 1)[-1]) else iter(())


def _alone(path: str, fits) -> Iterator[tuple[str, bytes]]:
    with open_input(path) as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if fits("", len(content)):
        yield "", content


def _in_folder(path: str, name: str, skip: Skip, wanted, fits) -> Iterator[tuple[str, bytes]]:
    for inside in folder_files(path):
        full = os.path.join(path, inside)
        if not wanted(inside):
            continue
        try:
            status = os.lstat(full)
            if not stat.S_ISREG(status.st_mode) or not fits(inside, status.st_size):  # no sockets, devices or pipes
                continue
            with open(full, "rb") as file:
                content = file.read(MAX_FILE_BYTES)
        except OSError as error:
            skip(f"{name}/{inside}", f"cannot be read: {error.strerror or error}")
            continue
        yield inside, content


class _Damaged(Exception):
    """Why a tar cannot be read on."""


class _Header(tarfile.TarInfo):
    """A member's header, whose damage is an error: tarfile takes it silently for the archive's end."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise _Damaged(str(error)) from error
        if header.type in _META_TYPES and header.size > _META_BYTES:
            raise _Damaged(f"a header of {header.size:,} bytes")
        return header


def _in_tar(path: str, name: str, skip: Skip, wanted, fits) -> Iterator[tuple[str, bytes]]:
    count = 0
    seen: set[int] = set()
    try:
        with (
            open_input(path) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, encoding="utf-8") as archive,
        ):
            for member in archive:
                archive.members = []  # it would keep all of them
                inside = _inside(member.name)
                if not member.isreg() or _is_version_control(inside) or not wanted(inside):
                    continue
                if hash(inside) in seen:
                    skip(f"{name}/{inside}", "stands in the archive more than once")
                elif fits(inside, member.size):
                    yield inside, archive.extractfile(member).read()
                seen.add(hash(inside))
                count += 1
    except (tarfile.TarError, _Damaged, EOFError) as error:
        raise DamagedFileError(f'"{path}" is damaged after {count:,} files: {error}. Get it again.') from error


def _in_zip(path: str, name: str, skip: Skip, wanted, fits) -> Iterator[tuple[str, bytes]]:
    inside, made = "", 0
    seen: set[str] = set()
    try:
        with (
            storage.filesystem(path).open(path, "rb") if storage.is_remote(path) else open(path, "rb") as file,
            zipfile.ZipFile(file) as archive,
        ):
            limit = max(EXPANSION_FLOOR, MAX_EXPANSION * file.seek(0, os.SEEK_END))
            for info in archive.infolist():
                inside = _inside(info.filename)
                link = stat.S_ISLNK(info.external_attr >> 16)
                if info.is_dir() or link or _is_version_control(inside) or not wanted(inside):
                    continue
                if inside in seen:
                    skip(f"{name}/{inside}", "stands in the archive more than once")
                elif info.flag_bits & 1:
                    skip(f"{name}/{inside}", "is encrypted")
                elif fits(inside, info.file_size):
                    made += info.file_size
                    if made > limit:
                        raise DamagedFileError(f'"{path}" expands more than {MAX_EXPANSION:g}-fold: it is a bomb.')
                    yield inside, archive.read(info)
                seen.add(inside)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        at = f' at "{inside}"' if inside else ""
        raise DamagedFileError(f'"{path}" is damaged{at}: {error}. Get it again.') from error
    except OSError as error:
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


def _inside(member: str) -> str:
    return os.path.normpath(member).replace(os.sep, "/").lstrip("/")


def _is_version_control(inside: str) -> bool:
    return any(part in VERSION_CONTROL for part in inside.split("/"))
