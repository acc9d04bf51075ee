"""The data card: what a corpus is made of and what became of every document, as plain data.

`card.json`, as `build_card` makes it and `lm.report.data_card` shows it:

    name, command, lm_version, created (ISO 8601), config, hash (of the manifest)
    seconds           {stage: wall time}
    tokenizer         {"name", "vocab_size", "sha256"}
    splits            {split: {"documents", "tokens", "bytes"}}
    outputs           [{"path", "bytes", "sha256"}], the token shards
    mixture           {"weighting", "weights": {domain: share of a run's tokens},
                       "epochs": {domain: times that the run sees it}, "tokens": of that run}
    sources           {name: {
        "reader", "domain", "license" (declared, or null)
        "files"       [{"path", "bytes", "sha256"}]
        "stages"      [{"name", "documents", "bytes", "tokens", "estimated"}], `read` first; tokens are null where not
                      known, and estimated from excerpts (`estimated`: true) but for the last stage
        "rejected"    {"filter/rule": documents}; "changes" {"step/what": n}
        "skipped"     [{"where", "reason"}], the first of `skipped_count` documents that could not be read
        "damaged"     [{"path", "reason"}], files of which a part could not be read
        "licenses", "languages"   {name: documents kept}
        "lengths"     {"edges": [bytes], "read": [documents], "kept": [documents]}, one count more than edges
        "quality"     {"edges", "kept", "rejected"}, one count less than edges
        "kept", "rejected_samples"   samples to read: see lm.corpus.tally
    }}
    rules             {"filter/rule": {"drops": what, "origin": of its threshold}}, of all filters that there are
    duplicates        {"exact", "near", "paragraphs", "candidates", "verified" (pairs), "clusters": {"sizes": {size: n}},
                       "between": [[source of the dropped, of the kept, documents]],
                       "parameters": {"threshold", "bands", "rows", "shingle_words", "s_curve": [[similarity, chance]]},
                       "pairs": [{"jaccard", "a": {"source", "id", "text"}, "b": the same}]}, or null
    decontamination   {"sets": {evaluation set: documents dropped}, "words", "max_overlap"}, or null: not asked for
    quality_classifier {"auc", "auc_error", "documents": {class: held out}, "thresholds": [{"threshold", "recall",
                       "ordinary_kept"}], "top_ngrams": {class: [[n-gram, weight]]}}, or null
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.corpus.tally import LENGTH_EDGES, QUALITY_EDGES, Stats, merge

CARD = "card.json"
MOST_SKIPPED = 50  # per source, on the card
MOST_PAIRS = 12
PAIR_CHARACTERS = 1500

Card = dict[str, Any]


def build_card(
    *,
    name: str,
    command: str,
    lm_version: str,
    created: str,
    config: Mapping[str, Any],
    content_hash: str,
    seconds: Mapping[str, float],
    tokenizer: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, int]],
    mixture: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]] = (),
    rules: Mapping[str, Mapping[str, str]] | None = None,
    duplicates: Mapping[str, Any] | None = None,
    decontamination: Mapping[str, Any] | None = None,
    quality_classifier: Mapping[str, Any] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Card:
    """Return the card of a corpus.

    Args:
      sources: by name, what `source_card` returns.
      rules: of all filters; the page leaves out those that no source asks for.
      count_tokens: of a text; estimates the tokens of what is not tokenized (see `source_card`).
      others: as in this file's docstring.
    """
    return {
        "name": name,
        "command": command,
        "lm_version": lm_version,
        "created": created,
        "config": dict(config),
        "hash": content_hash,
        "seconds": dict(seconds),
        "tokenizer": dict(tokenizer),
        "splits": {split: dict(counts) for split, counts in splits.items()},
        "outputs": [dict(file) for file in outputs],
        "mixture": dict(mixture),
        "sources": {source: _estimated(dict(about), count_tokens) for source, about in sources.items()},
        "rules": dict(rules or {}),
        "duplicates": _readable(duplicates),
        "decontamination": dict(decontamination) if decontamination else None,
        "quality_classifier": dict(quality_classifier) if quality_classifier else None,
    }


def source_card(
    *,
    reader: str,
    domain: str,
    files: Sequence[Mapping[str, Any]],
    tallies: Sequence[Stats],
    tokens: int | None,
    license: str | None = None,
    skipped: Sequence[Mapping[str, str]] = (),
    skipped_count: int | None = None,
    damaged: Sequence[Mapping[str, str]] = (),
) -> Card:
    """Return a source's part of the card.

    Args:
      tallies: merged over the source's parts, one of each stage that documents went through: of `refine`, of `keep`. A
        later one's `read` is what the earlier one kept. None: no document was read.
      tokens: of what was kept, end-of-text included.
      skipped: documents that could not be read, in order.
      skipped_count: their number, where `skipped` holds only the first.
    """
    tallies = tallies or [merge()]
    last = tallies[-1]
    steps = [*tallies[0]["steps"], *(step for stats in tallies[1:] for step in stats["steps"][1:])]
    return {
        "reader": reader,
        "domain": domain,
        "license": license,
        "files": [dict(file) for file in files],
        "stages": [
            {
                "name": step["name"],
                "documents": step["documents"],
                "bytes": step["bytes"],
                "tokens": tokens if place == len(steps) - 1 else None,
                "estimated": False,
                "excerpts": [text for _, text in step["excerpts"]],
            }
            for place, step in enumerate(steps)
        ],
        "rejected": _sum(stats["rejected"] for stats in tallies),
        "changes": _sum(stats["changes"] for stats in tallies),
        "skipped": [dict(entry) for entry in skipped[:MOST_SKIPPED]],
        "skipped_count": len(skipped) if skipped_count is None else skipped_count,
        "damaged": [dict(entry) for entry in damaged],
        "licenses": last["licenses"],
        "languages": last["languages"],
        "lengths": {
            "edges": list(LENGTH_EDGES),
            "read": tallies[0]["lengths"]["read"],
            "kept": last["lengths"]["kept"],
        },
        "quality": {
            "edges": list(QUALITY_EDGES),
            "kept": last["quality"]["kept"],
            "rejected": [
                sum(column) for column in zip(*(stats["quality"]["rejected"] for stats in tallies), strict=True)
            ],
        },
        "kept": last["samples"]["kept"],
        "rejected_samples": [entry for stats in tallies for entry in stats["samples"]["rejected"]],
    }


def _estimated(source: Card, count_tokens: Callable[[str], int] | None) -> Card:
    """Return a source with the tokens of stages whose documents are gone estimated from excerpts of them.

    The estimates are scaled by what is known of the last stage, where both the tokens and an estimate are: the excerpts
    of all stages are mostly of the same documents, and wrong alike.
    """
    stages = [dict(stage) for stage in source["stages"]]
    estimates = [_estimate(stage["bytes"], stage.pop("excerpts", []), count_tokens) for stage in stages]
    known, last = stages[-1]["tokens"], estimates[-1]
    scale = known / last if known and last else 1.0
    for stage, estimate in zip(stages, estimates, strict=True):
        if stage["tokens"] is None and estimate is not None:
            stage["tokens"], stage["estimated"] = round(scale * estimate), True
    return {**source, "stages": stages}


def _estimate(size: int, excerpts: Sequence[str], count_tokens: Callable[[str], int] | None) -> float | None:
    """Return the tokens of so many bytes of text like the excerpts; None: there is nothing to go by."""
    read = sum(len(text.encode("utf-8", "replace")) for text in excerpts)
    return size * sum(map(count_tokens, excerpts)) / read if count_tokens and read else None


def _readable(duplicates: Mapping[str, Any] | None) -> Card | None:
    """Return what is known of duplicates with few pairs of short texts."""
    if duplicates is None:
        return None
    pairs = [
        {**pair, **{side: {**pair[side], "text": pair[side]["text"][:PAIR_CHARACTERS]} for side in ("a", "b")}}
        for pair in duplicates.get("pairs", ())[:MOST_PAIRS]
    ]
    return {**duplicates, "pairs": pairs}


def _sum(parts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in parts:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return {name: total[name] for name in sorted(total)}
