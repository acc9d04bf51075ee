"""What the stages said, put together for the manifest and the card."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm.corpus.card import source_card
from lm.corpus.config import CorpusConfig
from lm.corpus.filters import thresholds_table
from lm.corpus.tally import merge
from lm.corpus.task import Task
from lm.data.mixture import cap_rows, fixed, proportional, temperature
from lm.errors import ConfigError, UsageError

Results = Sequence[tuple[Task, Mapping[str, Any]]]  # a stage's tasks and their stats


def mixture_of(config: CorpusConfig, tokens: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's mixture: weights by domain, and the epochs that a run may see of one.

    Args:
      config: says how domains are weighted; a domain's epochs are those that all its sources allow.
      tokens: of the train split, by domain.

    Raises:
      UsageError: no domain that has a weight has tokens.
    """
    known = {domain: count for domain, count in tokens.items() if count}
    weighted = (
        known if config.weighting != "fixed" else {name for name, weight in config.weights if weight and name in known}
    )
    if not weighted:
        raise UsageError(
            "no text is left to train on in a domain with a weight: lower validation_fraction, or filter less."
        )
    if config.weighting == "fixed":
        weights = fixed((domain, weight) for domain, weight in config.weights if domain in known)
    elif config.weighting == "temperature":
        weights = temperature(known, config.temperature)
    else:
        weights = proportional(known)
    epochs: dict[str, float] = {}
    for name, source in config.sources.items():
        domain = source.domain or name
        if source.max_epochs is not None and domain in known:
            epochs[domain] = min(source.max_epochs, epochs.get(domain, source.max_epochs))
    return {"weights": weights, "max_epochs": epochs}


def mixture_card(config: CorpusConfig, mixture: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    """Return the card's mixture: how often a run over as many tokens as there are sees each domain, within its cap."""
    total, weights = sum(tokens.values()), mixture["weights"]
    limits = {domain: int(epochs * tokens[domain]) for domain, epochs in mixture["max_epochs"].items()}
    with contextlib.suppress(ConfigError):  # caps that such a run cannot keep: training will say so
        weights = {domain: float(share) for domain, share in cap_rows(weights, limits, total).items()}
    epochs = {domain: weight * total / tokens[domain] for domain, weight in weights.items()}
    return {"weighting": config.weighting, "weights": weights, "epochs": epochs, "tokens": total}


def tokens_by(field: str, written: Results, splits: Iterable[str]) -> dict[str, int]:
    """Return the tokens written, by `source` or `domain`."""
    tokens: dict[str, int] = {}
    for task, result in written:
        name = task.arguments[field]
        tokens[name] = tokens.get(name, 0) + sum(e["tokens"] for split in splits for e in result["entries"][split])
    return tokens


def entries_of(written: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the manifest's entries by split, in the order of the tasks."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for _, result in written:
        for split, some in result["entries"].items():
            entries.setdefault(split, []).extend(some)
    return entries


def source_cards(
    config: CorpusConfig, read: Results, tallied: Sequence[Results], tokens: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return each source's part of the card.

    Args:
      config: the corpus.
      read: of the stage `read`.
      tallied: of each stage whose stats are a `lm.corpus.tally.Tally`'s, in their order.
      tokens: of all splits, by source.
    """
    cards = {}
    for name, source in config.sources.items():
        files = [(task.arguments, result) for task, result in read if task.arguments["name"] == name]
        stages = [[result for task, result in stage if task.arguments["name"] == name] for stage in tallied]
        cards[name] = source_card(
            reader=source.reader,
            domain=source.domain or name,
            files=[
                {"path": about["label"], "bytes": about["size"], "sha256": result["sha256"]} for about, result in files
            ],
            tallies=[merge(*stats) for stats in stages if stats],
            tokens=tokens.get(name, 0),
            license=source.license,
            skipped=[entry for _, result in files for entry in result["skipped"]],
            skipped_count=sum(result["skipped_count"] for _, result in files),
            damaged=[
                {"path": about["label"], "reason": result["damage"]} for about, result in files if result["damage"]
            ],
        )
    return cards


def rules() -> dict[str, dict[str, str]]:
    """Return where each rule's threshold is from, by `filter/rule`."""
    return {
        f"{row['filter']}/{row['rule']}": {"drops": row["drops"], "origin": row["source"]} for row in thresholds_table()
    }


def decontamination_card(config: CorpusConfig, names: Iterable[str], refined: Results) -> dict[str, Any]:
    """Return how many documents each evaluation set took out.

    Args:
      config: the corpus.
      names: of the sets.
      refined: of the stage `refine`.
    """
    sets = dict.fromkeys(names, 0)
    for _, result in refined:
        for rule, count in result["rejected"].items():
            step, _, name = rule.partition("/")
            if step == "decontamination":
                sets[name] += count
    about = config.decontamination
    return {"sets": sets, "words": about.words, "max_overlap": about.max_overlap}


def output_files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the shards, for the card."""
    return [
        {"path": shard["file"], "bytes": shard["bytes"], "sha256": shard["sha256"]}
        for split in manifest["splits"].values()
        for shard in split["shards"]
    ]
