"""The tasks that find duplicates: signatures, join, extract, verify. `lm.corpus.dedup.stages` puts them together."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lm.corpus.dedup.arrays import document_ids, part_of, position_of, read_arrays, split_by, write_arrays
from lm.corpus.dedup.exact import paragraph_hashes, text_hash
from lm.corpus.dedup.minhash import MinHash
from lm.corpus.dedup.pairs import bucket_pairs, first_of_equal, unique_pairs
from lm.corpus.dedup.shingles import find_words, mix, shingle_set, shingles
from lm.corpus.dedup.verify import ShingleSets
from lm.corpus.record import SUFFIX, Record, read_records
from lm.corpus.task import Report

_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 2**20, 1024  # hashed together


def signatures(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Hash a part's documents, their MinHash bands and their paragraphs, each row into its partition of the shuffle.

    Args:
      arguments: `part` (prefix), `index`, `partitions`, `documents` (exact or near ones are asked for), `near`
        (None, or `bands`, `rows`, `words`, `seed`), `paragraphs` (None, or the characters of the shortest).

    Writes, for each partition, `OUT-00000.npz`: `bands` [3, rows] (key, id, text's hash), `texts` [2, rows] (hash, id),
    `paragraphs` [3, rows] (hash, id, number), all uint64; and `OUT-documents.npz`: `quality`, `length` [documents].
    """
    near = arguments["near"]
    hasher = MinHash(near["bands"], near["rows"], near["seed"]) if near else None
    texts, quality, length, keys, with_keys = [], [], [], [], []
    blocks: list[tuple[int, int, int]] = []  # hash, position, number
    done = 0
    for batch in _batches(read_records(arguments["part"] + SUFFIX)):
        words = find_words([record.text for record in batch])
        if hasher:
            signed = [hasher.signature(some) for some in shingles(words, near["words"]) if len(some)]
            keys.append(hasher.band_keys(np.array(signed, np.uint64)))
            with_keys.append(len(texts) + np.flatnonzero(np.diff(words.offsets)))
        for number, record in enumerate(batch):
            if arguments["paragraphs"]:
                found = paragraph_hashes(record.text, arguments["paragraphs"])
                blocks.extend((value, len(texts), place) for place, value in found)
            texts.append(text_hash(words.of(number), record.text))
            quality.append(_quality(record))
            length.append(len(record.text))
            done += len(record.text)
        report(done)
    index, partitions = arguments["index"], arguments["partitions"]
    texts = np.array(texts, np.uint64)
    rows = {"texts": np.stack((texts, document_ids(index, np.arange(len(texts)))))}
    if not arguments["documents"]:
        rows["texts"] = rows["texts"][:, :0]
    bands = near["bands"] if near else 1
    flat = np.concatenate(keys).ravel() if keys else np.zeros(0, np.uint64)
    positions = np.repeat(np.concatenate([np.zeros(0, np.int64), *with_keys]), bands)
    rows["bands"] = np.stack((flat, document_ids(index, positions), texts[positions]))
    hashes, positions, numbers = np.array(blocks, np.uint64).reshape(-1, 3).T
    rows["paragraphs"] = np.stack((hashes, document_ids(index, positions), numbers))
    split = {name: split_by(array[0] % np.uint64(partitions), partitions, *array) for name, array in rows.items()}
    for partition in range(partitions):
        here = {name: np.stack(columns[partition]) for name, columns in split.items()}
        write_arrays(f"{out}-{partition:05d}.npz", **here)
    write_arrays(f"{out}-documents.npz", quality=np.array(quality, np.float64), length=np.array(length, np.int64))
    return {"documents": len(texts), "bands": int(rows["bands"].shape[1]), "paragraphs": len(blocks)}


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch, size = [], 0
    for record in records:
        batch.append(record)
        size += len(record.text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _quality(record: Record) -> float:
    value = record.metadata.get("quality")
    return -1.0 if value is None else float(value)


def join(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Find, in one partition of the shuffle, documents of the same text and candidate pairs.

    Args:
      arguments: `signatures` (prefix), `parts`, `partition`, `verifiers`, `group_starts`.

    Writes `OUT-exact.npz`: `first`, `other`; `OUT-pairs-00000.npz` for each verifier: `a`, `b`; and
    `OUT-wanted-00000.npz` for each group of parts: `ids`, `verifiers` that want their shingles.
    """
    prefix, parts, partition = arguments["signatures"], arguments["parts"], arguments["partition"]
    files = [f"{prefix}{part:05d}-{partition:05d}.npz" for part in range(parts)]
    hashes, ids = gather(files, "texts", 2)
    first, other = first_of_equal(hashes, ids)
    write_arrays(f"{out}-exact.npz", first=first, other=other)
    a, b = bucket_pairs(*gather(files, "bands", 3))
    verifiers = arguments["verifiers"]
    # By the later document: one that very many are compared with is sent to all verifiers, and they share the many.
    verifier = (mix(b) % np.uint64(verifiers)).astype(np.int64)
    for number, (left, right) in enumerate(split_by(verifier, verifiers, a, b)):
        write_arrays(f"{out}-pairs-{number:05d}.npz", a=left, b=right)
    wanted = unique_pairs(np.concatenate((a, b)), np.concatenate((verifier, verifier)))
    for number, (some, where) in enumerate(split_groups(arguments["group_starts"], *wanted)):
        write_arrays(f"{out}-wanted-{number:05d}.npz", ids=some, verifiers=where)
    return {"exact": len(other), "candidates": len(a)}


def gather(files: list[str], name: str, columns: int) -> np.ndarray:
    """Return one array of many files, [columns, rows] each, as one."""
    found = [array for path in files if (array := read_arrays(path)[name]).shape[1]]
    return np.concatenate(found, axis=1) if found else np.zeros((columns, 0), np.uint64)


def split_groups(starts: list[int], ids: np.ndarray, *columns: np.ndarray) -> list[list[np.ndarray]]:
    """Return ids and what stands beside them by group of parts; group i begins at part `starts[i]`."""
    group = np.searchsorted(starts, part_of(ids), side="right") - 1
    return split_by(group, len(starts), ids, *columns)


def extract(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Make the shingles of a group's documents that stand in candidate pairs, for the verifiers that want them.

    Args:
      arguments: `parts` (index and prefix of the group's), `group`, `joins` (prefix), `partitions`, `verifiers`,
        `words`.

    Writes `OUT-00000.npz` for each verifier: `ids`, `sizes`, `shingles`, as `lm.corpus.dedup.verify.ShingleSets`.
    """
    joins, group = arguments["joins"], arguments["group"]
    files = [f"{joins}{number:05d}-wanted-{group:05d}.npz" for number in range(arguments["partitions"])]
    found = [read_arrays(path) for path in files]
    ids, verifiers = unique_pairs(*(np.concatenate([each[name] for each in found]) for name in ("ids", "verifiers")))
    sets: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(arguments["verifiers"])]
    done = 0
    for index, prefix in arguments["parts"]:
        here = slice(*np.searchsorted(part_of(ids), [index, index + 1]))
        wanted, at = position_of(ids[here]), here.start
        for position, record in _chosen(prefix, wanted):
            found_set = shingle_set(record.text, arguments["words"])
            while at < here.stop and wanted[at - here.start] == position:
                sets[verifiers[at]].append((ids[at], found_set))
                at += 1
            report(done := done + len(record.text))
    for number, some in enumerate(sets):
        write_arrays(
            f"{out}-{number:05d}.npz",
            ids=np.array([identity for identity, _ in some], np.uint64),
            sizes=np.array([len(shingles) for _, shingles in some], np.int64),
            shingles=np.concatenate([shingles for _, shingles in some] or [np.zeros(0, np.uint64)]),
        )
    return {"documents": len(np.unique(ids))}


def _chosen(prefix: str, positions: np.ndarray) -> Iterator[tuple[int, Record]]:
    if not len(positions):
        return
    chosen = set(positions.tolist())
    for position, record in enumerate(read_records(prefix + SUFFIX)):
        if position in chosen:
            yield position, record


def verify(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Keep the candidate pairs whose shingles are alike.

    Args:
      arguments: `verifier`, `joins`, `partitions`, `extracts`, `groups`, `threshold`.

    Writes `OUT.npz`: `a`, `b`, `jaccard` of the pairs at or above the threshold.
    """
    number = arguments["verifier"]
    pairs = [read_arrays(f"{arguments['joins']}{p:05d}-pairs-{number:05d}.npz") for p in range(arguments["partitions"])]
    a, b = unique_pairs(*(np.concatenate([each[name] for each in pairs]) for name in ("a", "b")))
    files = [read_arrays(f"{arguments['extracts']}{g:05d}-{number:05d}.npz") for g in range(arguments["groups"])]
    ids, sizes, shingles = (np.concatenate([each[name] for each in files]) for name in ("ids", "sizes", "shingles"))
    files.clear()
    similarity = ShingleSets(ids, np.append(0, np.cumsum(sizes)), shingles).similarities(a, b, arguments["threshold"])
    alike = similarity >= arguments["threshold"]
    write_arrays(f"{out}.npz", a=a[alike], b=b[alike], jaccard=similarity[alike])
    return {"candidates": len(a), "verified": int(alike.sum())}
