"""Deduplication as stages of tasks, one barrier after each: memory is bounded by what a task holds, not by the corpus.

  signatures  a task per part: hashes of documents, MinHash bands and paragraphs, by partition of their hash
  join        per partition: documents of the same text; candidate pairs, those of the same bucket
  extract     per group of parts: the shingles of documents in candidate pairs, for the verifiers that compare them
  verify      per verifier: candidate pairs of Jaccard similarity at or above the threshold
  cluster     one task: connected documents, and the best copy of each cluster
  paragraphs  per partition: paragraphs that stand earlier in a document that stays
  keep        per part: the records that stay
  examples    one task: pairs to look at

The order of documents is that of their parts, then that in the part. Clusters are connected components: of a, b and c,
where only a, b and b, c are alike, one stays, as in FineWeb. Of a cluster the copy of higher `quality` (metadata)
stays, then the longer one, then the earlier.

Memory for 100 million documents of 3 KB (300 GB), 20 bands, none of it growing with the number of workers. "Measured":
`python -m experiments.benchmarks.near_duplicates --memory 2000000`.

  signatures  4 bytes per byte of a part's text (measured: 56 MiB for 15 MB) and 60 MB of known words. Written: 24 bytes
              per band, 16 for the text's hash, 16 for quality and length, 24 per paragraph: 0.6 KB a document, 60 GB.
  join        2e9 rows in partitions of 2^24: 120 tasks. Measured: 49 bytes a row at the peak, 0.8 GB.
              A bucket is in one partition: a text that stands ten million times adds 0.5 GB to up to 20 of them.
  extract     300 GB / 1,024 groups, shingles of 1.5 bytes per byte of text, twice while written: 0.9 GB if all
              documents are in candidate pairs.
  verify      420 tasks of 1 GB of shingles, if all documents are in candidate pairs. Measured: twice that, 2 GB.
              A document that is the earlier one of many pairs goes to several verifiers.
  cluster     Measured: 124 bytes per document that has a duplicate: 3.7 GB for 30 million, 12.4 GB if all have one. It
              is the one task that sees the whole corpus.
  paragraphs  as join, and 8 bytes per dropped document: 0.24 GB for 30 million.
  keep        a part.

There are parts x partitions files after `signatures` and groups x verifiers after `extract`: for a corpus of that size
`part_bytes` of 128 MiB keeps both under half a million.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lm import storage
from lm.corpus.config import CorpusConfig
from lm.corpus.dedup import near, resolve
from lm.corpus.dedup.minhash import s_curve
from lm.corpus.part import Part, parts_after
from lm.corpus.task import Task

EXAMPLES = 20  # pairs
_SEED = 1  # of the signatures
_PARTITION_ROWS = 2**24  # of 24 bytes
_VERIFIER_BYTES = 2**30  # of shingles
_SHINGLE_BYTES_PER_BYTE = 1.5  # a word takes about 5.7 bytes of text, its shingle 8
_MOST_GROUPS = 1024

Run = Callable[[str, list[Task]], list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class DedupResult:
    """What is left.

    Attributes:
      parts: of the documents that stay, one for each part given, in their order.
      about: for the card: `exact`, `near`, `emptied`, `paragraphs`, `candidates`, `verified` (pairs), `clusters`:
        {"sizes": {documents: clusters}}, `between`: [[source of the dropped, of the kept, documents]], `parameters`
        with `s_curve`, `pairs`: [{"jaccard", "a": {"source", "id", "text"}, "b": …}].
      kept: the tasks of the stage `keep` and their stats (`lm.corpus.tally`); none if nothing was asked for.
    """

    parts: list[Part]
    about: dict[str, Any]
    kept: list[tuple[Task, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How many tasks share the work; the results do not depend on it."""

    partitions: int
    verifiers: int
    group_starts: list[int]  # a group's first part


def dedup(work: str, parts: Sequence[Part], config: CorpusConfig, run: Run) -> DedupResult:
    """Drop duplicates from all parts, over all sources.

    Args:
      work: the folder of the files between stages, local or on an object store.
      parts: in the corpus's order.
      config: `config.dedup`, and of each source whether it asks for `paragraphs`.
      run: does a stage, given its name and tasks, and returns their stats in the tasks' order.

    Raises:
      what `run` raises.
    """
    plan = _Plan(storage.join(work, "dedup"), list(parts), config)
    options = config.dedup
    asked = options.exact or options.near
    if not parts or not (asked or plan.with_paragraphs):
        return DedupResult(list(parts), _about(config, {}, Counter(), [], []), [])
    signatures = plan.signatures()
    run("signatures", signatures)
    clusters, found, verified = None, {}, []
    if asked:
        joins = plan.joins(signatures)
        run("join", joins)
        verifies = []
        if options.near:
            extracts = plan.extracts(joins)
            run("extract", extracts)
            verifies = plan.verifies(joins, extracts)
            verified = run("verify", verifies)
        clusters = plan.cluster(joins, verifies)
        (found,) = run("cluster", [clusters])
    repeated = []
    if plan.with_paragraphs:
        repeated = plan.paragraphs(signatures, clusters)
        run("paragraphs", repeated)
    keeps = plan.keeps(clusters, repeated)
    kept = run("keep", keeps)
    pairs = []
    if found.get("examples"):
        (shown,) = run("examples", [plan.examples(found["examples"])])
        pairs = shown["pairs"]
    done = list(zip(keeps, kept, strict=True))
    return DedupResult(parts_after(parts, done), _about(config, found, _totals(kept), verified, pairs), done)


class _Plan:
    """The tasks of all stages."""

    def __init__(self, folder: str, parts: list[Part], config: CorpusConfig):
        self._folder, self._parts, self._config, self._seed = folder, parts, config.dedup, config.seed
        wanted = {
            name
            for name, source in config.sources.items()
            if config.dedup.paragraphs and source.paragraphs and source.reader != "code"  # whose blocks belong together
        }
        self.with_paragraphs = [index for index, part in enumerate(parts) if part.source in wanted]
        self._layout = _layout(parts, config)

    def _prefix(self, stage: str) -> str:
        return storage.join(self._folder, stage) + "/"

    def _task(
        self, stage: str, number: int, function, arguments: Mapping[str, Any], inputs: Iterable[str], size=0
    ) -> Task:
        return Task(f"{self._prefix(stage)}{number:05d}", function, arguments, tuple(inputs), size)

    def signatures(self) -> list[Task]:
        config = self._config
        near_options = {"bands": config.bands, "rows": config.rows, "words": config.shingle_words, "seed": _SEED}
        tasks, with_paragraphs = [], set(self.with_paragraphs)
        for index, part in enumerate(self._parts):
            arguments = {
                "part": part.prefix,
                "index": index,
                "partitions": self._layout.partitions,
                "documents": config.exact or config.near,
                "near": near_options if config.near else None,
                "paragraphs": config.paragraph_characters if index in with_paragraphs else None,
            }
            tasks.append(self._task("signatures", index, near.signatures, arguments, [part.key], part.bytes))
        return tasks

    def joins(self, signatures: list[Task]) -> list[Task]:
        layout, inputs = self._layout, [_keys(signatures)]
        arguments = {
            "signatures": self._prefix("signatures"),
            "parts": len(self._parts),
            "verifiers": layout.verifiers,
            "group_starts": layout.group_starts,
        }
        return [
            self._task("join", partition, near.join, arguments | {"partition": partition}, inputs)
            for partition in range(layout.partitions)
        ]

    def extracts(self, joins: list[Task]) -> list[Task]:
        layout, joined = self._layout, _keys(joins)
        common = {
            "joins": self._prefix("join"),
            "partitions": layout.partitions,
            "verifiers": layout.verifiers,
            "words": self._config.shingle_words,
        }
        tasks = []
        for number, members in enumerate(_groups(layout.group_starts, len(self._parts))):
            parts = [(index, self._parts[index]) for index in members]
            arguments = common | {"group": number, "parts": [[index, part.prefix] for index, part in parts]}
            inputs = [joined, *(part.key for _, part in parts)]
            size = sum(part.bytes for _, part in parts)
            tasks.append(self._task("extract", number, near.extract, arguments, inputs, size))
        return tasks

    def verifies(self, joins: list[Task], extracts: list[Task]) -> list[Task]:
        layout, inputs = self._layout, [_keys(joins), _keys(extracts)]
        arguments = {
            "joins": self._prefix("join"),
            "partitions": layout.partitions,
            "extracts": self._prefix("extract"),
            "groups": len(layout.group_starts),
            "threshold": self._config.threshold,
        }
        return [
            self._task("verify", verifier, near.verify, arguments | {"verifier": verifier}, inputs)
            for verifier in range(layout.verifiers)
        ]

    def cluster(self, joins: list[Task], verifies: list[Task]) -> Task:
        layout = self._layout
        arguments = {
            "joins": self._prefix("join"),
            "partitions": layout.partitions,
            "verifies": self._prefix("verify"),
            "verifiers": len(verifies),
            "signatures": self._prefix("signatures"),
            "sources": [part.source for part in self._parts],
            "group_starts": layout.group_starts,
            "examples": EXAMPLES,
        }
        return self._task("cluster", 0, resolve.cluster, arguments, [_keys(joins), _keys(verifies)])

    def paragraphs(self, signatures: list[Task], clusters: Task | None) -> list[Task]:
        layout = self._layout
        inputs = [_keys(signatures), *([clusters.key] if clusters else [])]
        arguments = {
            "signatures": self._prefix("signatures"),
            "parts": self.with_paragraphs,
            "clusters": clusters.out if clusters else None,
            "group_starts": layout.group_starts,
        }
        return [
            self._task("paragraphs", partition, resolve.paragraphs, arguments | {"partition": partition}, inputs)
            for partition in range(layout.partitions)
        ]

    def keeps(self, clusters: Task | None, repeated: list[Task]) -> list[Task]:
        inputs = [*([clusters.key] if clusters else []), *([_keys(repeated)] if repeated else [])]
        with_paragraphs = set(self.with_paragraphs)
        tasks = []
        for group, members in enumerate(_groups(self._layout.group_starts, len(self._parts))):
            for index in members:
                part = self._parts[index]
                arguments = {
                    "part": part.prefix,
                    "index": index,
                    "group": group,
                    "clusters": clusters.out if clusters else None,
                    "paragraphs": self._prefix("paragraphs"),
                    "partitions": len(repeated) if index in with_paragraphs else 0,
                    "seed": self._seed,
                    "name": part.source,
                }
                tasks.append(self._task("keep", index, resolve.keep, arguments, [part.key, *inputs], part.bytes))
        return tasks

    def examples(self, pairs: list[list]) -> Task:
        indices = sorted({int(identity) >> 32 for pair in pairs for identity in pair[:2]})
        arguments = {"pairs": pairs, "parts": {str(index): self._parts[index].prefix for index in indices}}
        inputs = [self._parts[index].key for index in indices]
        return self._task("examples", 0, resolve.examples, arguments, inputs)


def _layout(parts: Sequence[Part], config: CorpusConfig) -> _Layout:
    options = config.dedup
    total, documents = sum(part.bytes for part in parts), sum(part.documents for part in parts)
    rows = max(documents * (options.bands if options.near else 1), total // options.paragraph_characters)
    starts, size = [], 0
    for index, part in enumerate(parts):
        if not starts or size >= total / _MOST_GROUPS:
            starts.append(index)
            size = 0
        size += part.bytes
    return _Layout(
        partitions=max(options.partitions, -(-rows // _PARTITION_ROWS)),
        verifiers=max(options.partitions, int(total * _SHINGLE_BYTES_PER_BYTE / _VERIFIER_BYTES)),
        group_starts=starts,
    )


def _groups(starts: list[int], parts: int) -> Iterator[range]:
    for start, end in zip(starts, [*starts[1:], parts], strict=True):
        yield range(start, end)


def _keys(tasks: list[Task]) -> str:
    """Return one key that changes with any of the tasks': thousands of tasks read the files of thousands."""
    return hashlib.sha256(" ".join(task.key for task in tasks).encode()).hexdigest()[:32]


def _totals(kept: list[dict[str, Any]]) -> Counter:
    """Return the documents dropped by why, and the paragraphs dropped of those that were not."""
    totals = Counter()
    for stats in kept:
        totals.update({why: stats["rejected"].get(f"dedup/{why}", 0) for why in ("exact", "near", "emptied")})
        totals["paragraphs"] += stats["changes"].get("dedup/paragraphs", 0)
    return totals


def _about(
    config: CorpusConfig, found: Mapping[str, Any], totals: Counter, verified: list[dict[str, Any]], pairs: list
) -> dict[str, Any]:
    options = config.dedup
    curve = s_curve(options.bands, options.rows, [step / 20 for step in range(21)])
    return {
        **{name: totals[name] for name in ("exact", "near", "emptied", "paragraphs")},
        "candidates": sum(stats["candidates"] for stats in verified),
        "verified": sum(stats["verified"] for stats in verified),
        "clusters": {"sizes": found.get("sizes", {})},
        "between": found.get("between", []),
        "parameters": dataclasses.asdict(options) | {"seed": _SEED, "s_curve": [list(point) for point in curve]},
        "pairs": pairs,
    }
