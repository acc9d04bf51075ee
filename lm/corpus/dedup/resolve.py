"""The tasks that decide and drop: cluster, paragraphs, keep, examples. `lm.corpus.dedup.stages` puts them together."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.corpus.dedup.arrays import first_id, in_sorted, part_of, position_of, read_arrays, write_arrays
from lm.corpus.dedup.clusters import best_of_each, components
from lm.corpus.dedup.exact import without_paragraphs
from lm.corpus.dedup.near import gather, split_groups
from lm.corpus.dedup.pairs import first_of_equal
from lm.corpus.record import SUFFIX, Record, Rejection, read_records, write_records
from lm.corpus.tally import Tally
from lm.corpus.task import Report

_EXCERPT = 600  # characters of an example


def cluster(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Connect duplicates into clusters and choose each cluster's best copy.

    Args:
      arguments: `joins`, `partitions`, `verifies`, `verifiers` (0: no near duplicates), `signatures`, `sources` (of
        each part), `group_starts`, `examples`.

    Writes `OUT-00000.npz` for each group of parts: `ids` of the dropped, ascending, and `exact`: the copy kept has the
    same text; `OUT-all.npz`: `ids` of all dropped.

    Returns:
      `exact`, `near`: documents dropped; `pairs`: verified pairs; `sizes`: {documents of a cluster: clusters};
      `between`: [source of the dropped, source of the kept, documents]; `examples`: [a, b, jaccard], ids as text.
    """
    same = [read_arrays(f"{arguments['joins']}{p:05d}-exact.npz") for p in range(arguments["partitions"])]
    alike = [read_arrays(f"{arguments['verifies']}{v:05d}.npz") for v in range(arguments["verifiers"])]
    first, other = (_joined(same, name) for name in ("first", "other"))
    a, b, similarity = (_joined(alike, name) for name in ("a", "b", "jaccard"))
    ids = np.unique(np.concatenate((first, other, a, b)))
    first, other, left, right = (np.searchsorted(ids, each) for each in (first, other, a, b))
    texts = components(first, other, len(ids))
    clusters = components(np.concatenate((first, left)), np.concatenate((other, right)), len(ids))
    kept = best_of_each(clusters, *_about(ids, arguments["signatures"]))
    dropped = np.flatnonzero(kept != np.arange(len(ids)))
    exact = texts[dropped] == texts[kept[dropped]]
    for number, (some, flags) in enumerate(split_groups(arguments["group_starts"], ids[dropped], exact)):
        write_arrays(f"{out}-{number:05d}.npz", ids=some, exact=flags)
    write_arrays(f"{out}-all.npz", ids=ids[dropped])
    sizes = Counter(np.unique(clusters, return_counts=True)[1].tolist())
    return {
        "exact": int(exact.sum()),
        "near": int((~exact).sum()),
        "pairs": len(a),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "between": _between(part_of(ids[dropped]), part_of(ids[kept[dropped]]), arguments["sources"]),
        "examples": _examples(a, b, similarity, arguments["examples"]),
    }


def _joined(files: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    dtype = np.float64 if name == "jaccard" else np.uint64
    return np.concatenate([np.zeros(0, dtype), *(each[name] for each in files)])


def _about(ids: np.ndarray, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return documents' quality and length, read part by part."""
    quality, length = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
    parts = part_of(ids)
    for part in np.unique(parts).tolist():
        here = slice(*np.searchsorted(parts, [part, part + 1]))
        known = read_arrays(f"{prefix}{part:05d}-documents.npz")
        at = position_of(ids[here])
        quality[here], length[here] = known["quality"][at], known["length"][at]
    return quality, length


def _between(dropped: np.ndarray, kept: np.ndarray, sources: list[str]) -> list[list]:
    names = sorted(set(sources))
    source = np.array([names.index(name) for name in sources], np.int64)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (source[dropped], source[kept]), 1)
    return [[names[i], names[j], int(counts[i, j])] for i, j in np.argwhere(counts)]


def _examples(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, count: int) -> list[list]:
    """Return pairs from the least alike to the most, evenly: where the threshold lies shows at the first ones."""
    order = np.lexsort((b, a, similarity))
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(np.int64))]
    return [[str(a[i]), str(b[i]), float(similarity[i])] for i in chosen]


def paragraphs(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Find, in one partition of the shuffle, paragraphs that stand earlier in a document that stays.

    Args:
      arguments: `signatures`, `parts` (indices of those asked for), `partition`, `clusters` (prefix, or None),
        `group_starts`.

    Writes `OUT-00000.npz` for each group of parts: `ids`, `numbers` of the paragraphs to drop, by document.
    """
    files = [f"{arguments['signatures']}{part:05d}-{arguments['partition']:05d}.npz" for part in arguments["parts"]]
    hashes, ids, numbers = gather(files, "paragraphs", 3)
    if arguments["clusters"]:
        stays = ~in_sorted(ids, read_arrays(f"{arguments['clusters']}-all.npz")["ids"])
        hashes, ids, numbers = hashes[stays], ids[stays], numbers[stays]
    _, repeated = first_of_equal(hashes, np.arange(len(ids)))  # rows stand in the corpus's order
    repeated.sort()
    split = split_groups(arguments["group_starts"], ids[repeated], numbers[repeated])
    for number, (some, which) in enumerate(split):
        write_arrays(f"{out}-{number:05d}.npz", ids=some, numbers=which)
    return {"paragraphs": len(repeated)}


def keep(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Write a part's records without the dropped documents and paragraphs.

    Args:
      arguments: `part`, `index`, `group`, `clusters` (prefix, or None), `paragraphs` (prefix), `partitions` (0: no
        paragraphs), `seed`, `name` (the source's).

    Returns:
      a `lm.corpus.tally.Tally`'s stats, of the step `dedup`: its rules are `dedup/exact`, `dedup/near` and `dedup/emptied`
      (of documents that lost all paragraphs), its change `dedup/paragraphs`, of documents that were not dropped before.
    """
    group, index = arguments["group"], arguments["index"]
    dropped: dict[int, str] = {}
    if arguments["clusters"]:
        found = read_arrays(f"{arguments['clusters']}-{group:05d}.npz")
        here = _of_part(found["ids"], index)
        exact = found["exact"][here].tolist()
        dropped = {
            p: "exact" if same else "near" for p, same in zip(position_of(found["ids"][here]), exact, strict=True)
        }
    repeated: dict[int, set[int]] = {}
    for partition in range(arguments["partitions"]):
        found = read_arrays(f"{arguments['paragraphs']}{partition:05d}-{group:05d}.npz")
        here = _of_part(found["ids"], index)
        for position, number in zip(
            position_of(found["ids"][here]).tolist(), found["numbers"][here].tolist(), strict=True
        ):
            repeated.setdefault(position, set()).add(number)
    step, tally, kept, done = _Drop(dropped, repeated), Tally(arguments["seed"]), [], 0
    for record in read_records(arguments["part"] + SUFFIX):
        done += len(record.text)
        report(done)
        if tally.run([step], record) is not None:
            kept.append(record)
    write_records(out + SUFFIX, kept)
    return tally.stats()


class _Drop:
    """The document step that drops what stands elsewhere, of a part's records in their order."""

    name = "dedup"

    def __init__(self, documents: Mapping[int, str], paragraphs: Mapping[int, set[int]]):
        self._documents, self._paragraphs, self._position = documents, paragraphs, -1
        self.counts = Counter(paragraphs=0)

    def __call__(self, record: Record) -> Rejection | None:
        self._position += 1
        why = self._documents.get(self._position)
        if why is None and (repeated := self._paragraphs.get(self._position)):
            self.counts["paragraphs"] += len(repeated)
            text = without_paragraphs(record.text, repeated)
            if text:
                record.text = text
            else:
                why = "emptied"
        return Rejection(f"{self.name}/{why}") if why else None


def _of_part(ids: np.ndarray, part: int) -> slice:
    """Return where a part's documents are among ascending ids."""
    return slice(*np.searchsorted(ids, np.array([first_id(part), first_id(part + 1)])))


def examples(arguments: Mapping[str, Any], out: str, report: Report) -> dict[str, Any]:
    """Read the beginnings of example pairs.

    Args:
      arguments: `pairs`: [a, b, jaccard] each, ids as text; `parts`: {index as text: prefix}.

    Returns:
      `pairs`: {"jaccard", "a": {"source", "id", "text"}, "b": …} each.
    """
    wanted = np.array(sorted({int(identity) for pair in arguments["pairs"] for identity in pair[:2]}), np.uint64)
    excerpts = {}
    for part in np.unique(part_of(wanted)).tolist():
        ids = {int(position_of(identity)): str(identity) for identity in wanted[_of_part(wanted, part)]}
        for position, record in enumerate(read_records(arguments["parts"][str(part)] + SUFFIX)):
            if position in ids:
                excerpt = {"source": record.source, "id": record.id, "text": record.text[:_EXCERPT]}
                excerpts[ids[position]] = excerpt
    pairs = arguments["pairs"]
    return {"pairs": [{"jaccard": jaccard, "a": excerpts[a], "b": excerpts[b]} for a, b, jaccard in pairs]}
