"""What a chain of document steps did: counts after each step, rejections by rule, histograms, and samples to read.

Stats are plain JSON and add up (`merge`), whatever the parts that the documents came in:

    {"steps": [{"name": "read", "documents": n, "bytes": n, "excerpts": [[hash, text], …]}, {"name": "clean", …}, …],
     "rejected": {"filter/rule": documents}, "changes": {"step/what": n},
     "samples": {"kept": [{"key", "id", "url", "title", "language", "quality", "text", "bytes"}],
                 "rejected": [{"rule", "value", and the same}]},
     "lengths": {"read": [documents], "kept": [documents]},        of LENGTH_EDGES, in bytes
     "quality": {"kept": [documents], "rejected": [documents]},    of QUALITY_EDGES, of documents that have a score
     "languages": {code: documents kept}, "licenses": {name: documents kept}}

A step's `documents` and `bytes` are what is left after it; `read` is what came in. A `bytes` is of the text in UTF-8.
Samples are the documents with the smallest keyed hashes of (source, id): a random choice that does not depend on how
the documents were cut into parts, nor on their order.
"""

import bisect
import collections
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm.corpus.record import Record, Rejection, Step, utf8_bytes

LENGTH_EDGES = tuple(2**power for power in range(6, 25))  # below 64 bytes, 64 to 128, …, 16 MiB and more
QUALITY_EDGES = tuple(place / 20 for place in range(21))
KEPT_SAMPLES = 12
REJECTED_SAMPLES = 4  # of each rule
EXCERPTS = 12  # per step, for bytes per token
SAMPLE_CHARACTERS = 1500
EXCERPT_CHARACTERS = 1000
_TITLE_CHARACTERS = 300  # of an id, a URL, a title or a value

Stats = dict[str, Any]


class Tally:
    """Counts around a chain of steps, over the documents of one source.

    `seed` decides which documents are the samples.
    """

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._steps: Sequence[Step] = ()
        self._documents: list[int] = [0]
        self._bytes: list[int] = [0]
        self._excerpts: list[_Smallest] = [_Smallest(EXCERPTS)]
        self._rejected: collections.Counter[str] = collections.Counter()
        self._kept_samples = _Smallest(KEPT_SAMPLES)
        self._rejected_samples: dict[str, _Smallest] = {}
        self._lengths = {name: [0] * (len(LENGTH_EDGES) + 1) for name in ("read", "kept")}
        self._quality = {name: [0] * (len(QUALITY_EDGES) - 1) for name in ("kept", "rejected")}
        self._languages: collections.Counter[str] = collections.Counter()
        self._licenses: collections.Counter[str] = collections.Counter()

    def run(self, steps: Sequence[Step], record: Record) -> Record | None:
        """Take a record through the steps, which change it in place; None: one of them rejected it.

        The steps are the same objects in every call.
        """
        if not self._steps:
            self._steps = steps
            self._documents += [0] * len(steps)
            self._bytes += [0] * len(steps)
            self._excerpts += [_Smallest(EXCERPTS) for _ in steps]
        key = self._key(record)
        text, size = record.text, utf8_bytes(record.text)
        self._count(0, key, text, size)
        self._lengths["read"][bisect.bisect_right(LENGTH_EDGES, size)] += 1
        for place, step in enumerate(steps, 1):
            rejection = step(record)
            if record.text is not text:
                text, size = record.text, utf8_bytes(record.text)
            if rejection is not None:
                self._reject(key, record, rejection, size)
                return None
            self._count(place, key, text, size)
        self._keep(key, record, size)
        return record

    def stats(self) -> Stats:
        """Return what was counted so far; the same for the same documents in any order."""
        names = ["read", *(step.name for step in self._steps)]
        changes: collections.Counter[str] = collections.Counter()
        for step in self._steps:
            for what, count in step.counts.items():
                name = what if what.startswith(f"{step.name}/") else f"{step.name}/{what}"
                if name not in self._rejected:  # some steps count those, too
                    changes[name] += count
        rejected = [entry for smallest in self._rejected_samples.values() for entry in smallest.entries()]
        return {
            "steps": [
                {"name": name, "documents": documents, "bytes": size, "excerpts": excerpts.entries()}
                for name, documents, size, excerpts in zip(
                    names, self._documents, self._bytes, self._excerpts, strict=True
                )
            ],
            "rejected": _ordered(self._rejected),
            "changes": _ordered(changes),
            "samples": {"kept": self._kept_samples.entries(), "rejected": sorted(rejected, key=_rule_and_key)},
            "lengths": {name: list(counts) for name, counts in self._lengths.items()},
            "quality": {name: list(counts) for name, counts in self._quality.items()},
            "languages": _ordered(self._languages),
            "licenses": _ordered(self._licenses),
        }

    def _key(self, record: Record) -> str:
        about = f"{self._seed}\0{record.source}\0{record.id}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(about, digest_size=8).hexdigest()

    def _count(self, place: int, key: str, text: str, size: int) -> None:
        self._documents[place] += 1
        self._bytes[place] += size
        if self._excerpts[place].wants(key):
            start = int(key, 16) % max(1, len(text) - EXCERPT_CHARACTERS)  # the head of a page is not like the rest
            self._excerpts[place].add(key, [key, text[start : start + EXCERPT_CHARACTERS]])

    def _keep(self, key: str, record: Record, size: int) -> None:
        self._lengths["kept"][bisect.bisect_right(LENGTH_EDGES, size)] += 1
        self._score("kept", record)
        for counts, name in ((self._languages, "language"), (self._licenses, "license")):
            if record.metadata.get(name):
                counts[str(record.metadata[name])[:_TITLE_CHARACTERS]] += 1
        if self._kept_samples.wants(key):
            self._kept_samples.add(key, _sample(key, record, size))

    def _reject(self, key: str, record: Record, rejection: Rejection, size: int) -> None:
        self._rejected[rejection.rule] += 1
        self._score("rejected", record)
        samples = self._rejected_samples.setdefault(rejection.rule, _Smallest(REJECTED_SAMPLES))
        if samples.wants(key):
            value = rejection.value[:_TITLE_CHARACTERS] if isinstance(rejection.value, str) else rejection.value
            samples.add(key, {"rule": rejection.rule, "value": value, **_sample(key, record, size)})

    def _score(self, outcome: str, record: Record) -> None:
        quality = record.metadata.get("quality")
        if quality is not None:
            bins = self._quality[outcome]
            bins[min(int(quality * len(bins)), len(bins) - 1)] += 1


def merge(*parts: Stats) -> Stats:
    """Return the stats of all documents of some parts of one source; those of no part are of no documents.

    Raises:
      ValueError: the parts went through different steps.
    """
    known = [stats for stats in parts if stats["steps"][0]["documents"]]
    if not known:
        return parts[0] if parts else Tally().stats()
    names = [[step["name"] for step in stats["steps"]] for stats in known]
    if any(name != names[0] for name in names):
        raise ValueError(f"parts of one source went through different steps: {names}")
    rejected: dict[str, list] = {}
    for stats in known:
        for entry in stats["samples"]["rejected"]:
            rejected.setdefault(entry["rule"], []).append(entry)
    return {
        "steps": [
            {
                "name": name,
                "documents": sum(stats["steps"][place]["documents"] for stats in known),
                "bytes": sum(stats["steps"][place]["bytes"] for stats in known),
                "excerpts": sorted(e for stats in known for e in stats["steps"][place]["excerpts"])[:EXCERPTS],
            }
            for place, name in enumerate(names[0])
        ],
        **{name: _add(*(stats[name] for stats in known)) for name in ("rejected", "changes", "languages", "licenses")},
        "samples": {
            "kept": sorted((e for stats in known for e in stats["samples"]["kept"]), key=_by_key)[:KEPT_SAMPLES],
            "rejected": [
                entry for rule in sorted(rejected) for entry in sorted(rejected[rule], key=_by_key)[:REJECTED_SAMPLES]
            ],
        },
        **{
            name: {
                outcome: [sum(column) for column in zip(*(stats[name][outcome] for stats in known), strict=True)]
                for outcome in known[0][name]
            }
            for name in ("lengths", "quality")
        },
    }


class _Smallest:
    """The entries with the smallest keys among all that were offered."""

    def __init__(self, most: int):
        self._most = most
        self._kept: list[tuple[str, Any]] = []  # in the order of their keys

    def wants(self, key: str) -> bool:
        return len(self._kept) < self._most or key < self._kept[-1][0]

    def add(self, key: str, entry: Any) -> None:
        bisect.insort(self._kept, (key, entry), key=lambda pair: pair[0])
        del self._kept[self._most :]

    def entries(self) -> list[Any]:
        return [entry for _, entry in self._kept]


def _sample(key: str, record: Record, size: int) -> dict[str, Any]:
    title, language = record.metadata.get("title"), record.metadata.get("language")
    return {
        "key": key,
        "id": record.id[:_TITLE_CHARACTERS],
        "url": record.url[:_TITLE_CHARACTERS] if record.url else None,
        "title": str(title)[:_TITLE_CHARACTERS] if title else None,
        "language": str(language)[:_TITLE_CHARACTERS] if language else None,
        "quality": record.metadata.get("quality"),
        "text": record.text[:SAMPLE_CHARACTERS],
        "bytes": size,
    }


def _by_key(entry: Mapping[str, Any]) -> str:
    return entry["key"]


def _rule_and_key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["rule"], entry["key"]


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts in the order of their names, without zeros."""
    return {name: counts[name] for name in sorted(counts) if counts[name]}


def _add(*counts: Mapping[str, int]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for each in counts:
        total.update(each)
    return _ordered(total)
