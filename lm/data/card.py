"""What is in a prepared folder, as plain data and as text."""

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
    return {
        "folder": dataset.folder,
        "hash": dataset.hash,
        "verified": dataset.verify,
        "source": dataset.manifest["source"],
        "tokenizer": dataset.manifest["tokenizer"],
        "splits": splits,
    }


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
    lines += ["", "tokens per document" + "".join(f"{name:>12}" for name in _QUANTILES)]
    for name, split in content["splits"].items():
        lines.append(f"{name:<19}" + "".join(f"{value:>12,}" for value in split["document_tokens"].values()))
    return "\n".join(lines)
