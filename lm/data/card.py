"""What is in a prepared folder, as plain data and as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.dataset import Dataset

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}


def card(dataset: Dataset) -> dict[str, Any]:
    """Return hash, source, tokenizer, and per split the counts and document lengths (tokens, eot included).

    Raises:
      DamagedFileError: a shard is truncated, or (with `dataset.verify`) changed.
    """
    splits = {}
    for split in dataset.splits:
        entry = dataset.counts(split)
        shards = dataset.shards(split)
        for shard in shards:
            shard.check(wait=True)
        lengths = np.concatenate([shard.lengths for shard in shards])
        quantiles = np.quantile(lengths, list(_QUANTILES.values()), method="nearest")
        splits[split] = {
            "documents": entry["documents"],
            "tokens": entry["tokens"],
            "bytes": entry["bytes"],
            "bytes_per_token": entry["bytes"] / entry["tokens"],
            "shards": len(entry["shards"]),
            "document_tokens": dict(zip(_QUANTILES, map(int, quantiles), strict=True)),
        }
        if any(dataset.domains(split)):
            splits[split]["domains"] = _domains(entry["shards"])
    return {
        "folder": dataset.folder,
        "hash": dataset.hash,
        "verified": dataset.verify,
        "source": dataset.manifest["source"],
        "tokenizer": dataset.manifest["tokenizer"],
        "splits": splits,
        **({"mixture": _mixture(dataset.manifest["mixture"], splits)} if dataset.manifest.get("mixture") else {}),
    }


def _domains(shards: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return documents, tokens and bytes of each domain."""
    found: dict[str, dict[str, int]] = {}
    for shard in shards:
        own = found.setdefault(shard.get("domain") or "-", dict.fromkeys(("documents", "tokens", "bytes"), 0))
        for name in own:
            own[name] += shard[name]
    return found


def _mixture(mixture: Mapping[str, Any], splits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's mixture, and each domain's epochs in a run of as many tokens as the train split has."""
    train = splits.get("train", {})
    weights = {d: w for d, w in mixture.get("weights", {}).items() if d in train.get("domains", {})}
    tokens = {domain: train["tokens"] * weight / sum(weights.values()) for domain, weight in weights.items()}
    return {**mixture, "epochs": {domain: tokens[domain] / train["domains"][domain]["tokens"] for domain in tokens}}


def card_text(content: dict[str, Any]) -> str:
    """Return a card for people to read."""
    files = content["source"].get("files", ())
    source = ", ".join(f"{name} {value}" for name, value in content["source"].items() if value and name != "files")
    tokenizer = content["tokenizer"]
    lines = [
        f"folder     {content['folder']}",
        f"hash       {content['hash']}{' (shards verified)' if content['verified'] else ''}",
        f"source     {source.removeprefix('name ')}",
        *(
            f"           {file['url']}, {file['bytes']:,} bytes, sha256 {file['sha256']} ({file['checksum']})"
            for file in files
        ),
        f"tokenizer  {tokenizer['name']}, {tokenizer['vocab_size']:,} ids, sha256 {tokenizer['sha256'][:16]}…",
        "",
        f"{'split':<12}{'documents':>12}{'tokens':>16}{'bytes':>16}{'bytes/token':>13}{'shards':>8}",
    ]
    for name, split in content["splits"].items():
        lines.append(
            f"{name:<12}{split['documents']:>12,}{split['tokens']:>16,}{split['bytes']:>16,}"
            f"{split['bytes_per_token']:>13.3f}{split['shards']:>8,}"
        )
        for domain, own in split.get("domains", {}).items():
            lines.append(
                f"  {domain:<10}{own['documents']:>12,}{own['tokens']:>16,}{own['bytes']:>16,}"
                f"{own['bytes'] / own['tokens']:>13.3f}"
            )
    if mixture := content.get("mixture"):
        caps = mixture.get("max_epochs", {})
        lines += ["", f"{'mixture':<12}{'weight':>12}{'epochs*':>16}{'at most':>16}"]
        for domain, weight in mixture.get("weights", {}).items():
            epochs, cap = mixture["epochs"].get(domain, 0.0), caps.get(domain)
            lines.append(f"  {domain:<10}{weight:>12.4g}{epochs:>16.2f}{'-' if cap is None else f'{cap:g}':>16}")
        lines.append("  * in a run of as many tokens as the train split has, caps not counted")
    lines += ["", "tokens per document" + "".join(f"{name:>12}" for name in _QUANTILES)]
    for name, split in content["splits"].items():
        lines.append(f"{name:<19}" + "".join(f"{value:>12,}" for value in split["document_tokens"].values()))
    return "\n".join(lines)
