"""Stage `read`: a raw file to parts of records."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lm import storage
from lm.corpus.config import CorpusConfig, SourceConfig
from lm.corpus.part import Part
from lm.corpus.readers import find_reader, input_files
from lm.corpus.readers.inputs import folder_files
from lm.corpus.readers.opening import check_sha256, watched
from lm.corpus.record import SUFFIX, Record, utf8_bytes, write_records
from lm.corpus.task import Report, Task
from lm.data.document import Progress
from lm.errors import DamagedFileError, UsageError
from lm.extensions import extension_hashes
from lm.fields import build

_OF_READERS = (
    "reader",
    "paths",
    "text_key",
    "namespaces",
    "license",
)  # what a reader looks at; the rest changes nothing
_SHOWN = 20  # skipped documents kept per file, to show


def read_tasks(work: str, config: CorpusConfig, download: Progress | None = None) -> list[Task]:
    """Return a task per input file, source by source; files at http(s) are downloaded here, and `download` is told.

    Raises:
      UsageError, ConfigError: nothing is at a path, or there is no such reader.
    """
    return [
        Task(
            storage.join(work, "read", name, f"{number:05d}"),
            read_file,
            {
                "label": file.label,
                "path": file.path,
                "size": file.size,
                "version": version_of(file.path),
                "sha256": file.sha256,
                "name": name,
                "source": {field: getattr(source, field) for field in _OF_READERS},
                "code": extension_hashes([source.reader]),
                "part_bytes": config.part_bytes,
                "damaged": config.damaged,
            },
            size=file.size,
        )
        for name, source in config.sources.items()
        for number, file in enumerate(input_files(source, name, download))
    ]


def parts_of(tasks: Sequence[Task], results: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return the parts that read tasks wrote, in order.

    Raises:
      UsageError: a source has no documents at all.
    """
    found = {task.arguments["name"]: 0 for task in tasks}
    for task, result in zip(tasks, results, strict=True):
        found[task.arguments["name"]] += len(result["parts"])
    if empty := [name for name, count in found.items() if not count]:
        raise UsageError(
            f"config.sources.{empty[0]} has no documents: none of its files holds one that its reader can read."
        )
    return [
        Part(_part(task.out, number), task.arguments["name"], task.key, part["documents"], part["bytes"])
        for task, result in zip(tasks, results, strict=True)
        for number, part in enumerate(result["parts"])
    ]


def read_file(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Read one file (see `Task`).

    Returns:
      `parts` ({documents, bytes} each), `skipped` (the first documents that could not be used, `where` and `reason`),
      `skipped_count`, `damage` (a line, or None) and the file's `sha256` (None for a folder).

    Raises:
      DamagedFileError: the file is damaged, or has another checksum than the config's.
    """
    source, path = build(SourceConfig, arguments["source"], ""), arguments["path"]
    sha256 = None if storage.is_folder(path) else check_sha256(path, arguments["sha256"])
    parts: list[dict[str, int]] = []
    records: list[Record] = []
    skipped: list[dict[str, str]] = []
    size = skipped_count = 0

    def skip(where: str, reason: str) -> None:
        nonlocal skipped_count
        skipped_count += 1
        if len(skipped) < _SHOWN:
            skipped.append({"where": where, "reason": reason})

    def close_part() -> None:
        nonlocal records, size
        if records:
            write_records(_part(out, len(parts)) + SUFFIX, records)
            parts.append({"documents": len(records), "bytes": size})
        records, size = [], 0

    damage = None
    with watched(report):
        try:
            for record in find_reader(source.reader).read(path, source, skip):
                record.source = arguments["name"]
                bytes_here = utf8_bytes(record.text)
                if size + bytes_here > arguments["part_bytes"]:
                    close_part()
                records.append(record)
                size += bytes_here
        except DamagedFileError as error:
            if arguments["damaged"] == "fail":
                raise
            damage = str(error).replace(path, arguments["label"])
    close_part()
    return {"parts": parts, "skipped": skipped, "skipped_count": skipped_count, "damage": damage, "sha256": sha256}


def version_of(path: str) -> str | None:
    """Return what changes when a file or folder may have changed, without opening it; None: a store's folder.

    Raises:
      UsageError: there is none.
    """
    if not storage.exists(path):
        raise UsageError(f'no file or folder "{path}". Check the path.')
    if storage.is_remote(path):
        with storage.of_store(path, "read"):
            return None if storage.is_folder(path) else str(storage.filesystem(path).ukey(path))
    files = list(folder_files(path)) if os.path.isdir(path) else [""]
    stats = [(file, os.stat(os.path.join(path, file) if file else path)) for file in files]
    about = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _part(out: str, number: int) -> str:
    return f"{out}-{number:05d}"
