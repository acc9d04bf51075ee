"""What a data card says in words: the verdict, what needs attention, and the whole card for a terminal."""

from collections.abc import Mapping
from typing import Any

from lm.train.console import compact, duration, printable

Card = Mapping[str, Any]
_MUCH_LOST = 0.9  # of a source's documents: a rule may not fit it
_MANY_EPOCHS = 4.0  # more repetition than this is worth less and less: Muennighoff et al. 2023, arXiv:2305.16264
_BAD_AUC = 0.8
_STRICT = 0.5  # of a source's documents dropped by one rule


def size(count: float | None) -> str:
    """Return bytes in three digits and decimal units: `1.24 MB`."""
    text = compact(count)
    return f"{text[:-1]} {text[-1].replace('B', 'G')}B" if text[-1].isalpha() else f"{text} B"


def verdict(card: Card) -> list[tuple[str, str]]:
    """Return the sentences at the top of the page as (kind, sentence): what this corpus is, and what was done to it."""
    sources = card["sources"].values()
    tokens, documents = (sum(s[key] for s in card["splits"].values()) for key in ("tokens", "documents"))
    domains = {name: 0 for source in sources for name in [source["domain"]]}
    for source in sources:
        domains[source["domain"]] += source["stages"][-1]["tokens"] or 0
    parts = ", ".join(f"{name} {count / tokens:.0%}" for name, count in domains.items()) if tokens else "nothing"
    read = sum(source["stages"][0]["bytes"] for source in sources)
    kept = sum(source["stages"][-1]["bytes"] for source in sources)
    found = card.get("duplicates")
    lines = [
        (
            "lead",
            f"{compact(tokens)} tokens in {compact(documents)} documents of {_count(len(domains), 'domain')}: {parts}.",
        ),
        ("", f"{kept / read:.0%} of the {size(read)} of text that was read is kept." if read else "No text was read."),
    ]
    if found:
        lines.append(
            (
                "",
                f"{_count(found.get('exact', 0), 'exact duplicate')}, {_count(found.get('near', 0), 'near-duplicate')} and "
                f"{_count(found.get('paragraphs', 0), 'repeated paragraph')} were dropped.",
            )
        )
    else:
        lines.append(("worse", "Duplicates were not looked for."))
    contaminated = card.get("decontamination")
    if contaminated is None:
        lines.append(("worse", "It was not held against evaluation sets."))
    else:
        dropped = _count(sum(contaminated["sets"].values()), "document")
        lines.append(("", f"{dropped} with pieces of evaluation sets dropped."))
    return lines


def problems(card: Card) -> list[str]:
    """Return what went wrong, or may have: what must not be overlooked before the corpus is used."""
    out = []
    if not card["splits"].get("train", {}).get("tokens"):
        out.append("There is nothing to train on: the corpus is empty.")
    for name, source in card["sources"].items():
        read, kept = (source["stages"][place]["documents"] for place in (0, -1))
        out += [
            f"{name}: a file is damaged, and what follows the damage is missing: {entry['path']}."
            for entry in source["damaged"]
        ]
        if not read:
            out.append(f"{name}: nothing was read from {_count(len(source['files']), 'file')}.")
        elif not kept:
            out.append(f"{name}: none of its {read:,} documents was kept.")
        elif kept < (1 - _MUCH_LOST) * read:
            out.append(f"{name}: only {kept / read:.1%} of its {read:,} documents were kept.")
        if source["skipped_count"]:
            out.append(f"{name}: {_count(source['skipped_count'], 'document')} could not be read, and were skipped.")
    return out


def doubts(card: Card) -> list[str]:
    """Return what is as it was asked for, but worth a thought."""
    out = []
    for name, source in card["sources"].items():
        read = source["stages"][0]["documents"]
        out += [
            f"{name}: {rule} alone dropped {count / read:.0%} of the documents. Does it fit this source?"
            for rule, count in source["rejected"].items()
            if count > _STRICT * read > 0
        ]
    epochs = (card["mixture"].get("epochs") or {}).items()
    often = [f"{domain} {count:.1f} times" for domain, count in epochs if count is not None and count > _MANY_EPOCHS]
    if often:
        out.append(f"A run would see {', '.join(often)}: beyond {_MANY_EPOCHS:g} epochs repetition helps little.")
    auc = (card.get("quality_classifier") or {}).get("auc")
    if auc is not None and auc < _BAD_AUC:
        out.append(f"The quality classifier hardly tells good from ordinary text: AUC {auc:.3f}.")
    return out


def source_sentence(source: Card) -> str:
    """Return one sentence on where a source comes from and what is left of it."""
    first, last = source["stages"][0], source["stages"][-1]
    files = source["files"]
    known = [file["bytes"] for file in files if file.get("bytes") is not None]
    of = f" of {size(sum(known))}" if known else ""
    share = f"{last['bytes'] / first['bytes']:.0%} of the text is kept" if first["bytes"] else "it holds no text"
    return f"{_count(len(files), 'file')}{of}, read as {source['reader']}, mixed as {source['domain']}; {share}."


def card_text(card: Card) -> str:
    """Return the card for people at a terminal; nothing in it acts on one."""
    lines = [f"corpus     {card['name']}", f"hash       {card['hash']}", f"command    {card['command']}"]
    tokenizer = card["tokenizer"]
    lines.append("tokenizer  " + ", ".join(f"{name} {value}" for name, value in tokenizer.items() if value is not None))
    lines.append(
        f"built      {card['created']}, lm {card['lm_version']}; its last start took {duration(sum(card['seconds'].values()))}"
    )
    lines += [f"ATTENTION  {problem}" for problem in problems(card)]
    lines += ["", *(sentence for _, sentence in verdict(card)), *doubts(card), ""]
    lines.append(f"{'split':<16}{'documents':>12}{'tokens':>16}{'bytes':>16}{'bytes/token':>13}")
    for name, counts in card["splits"].items():
        ratio = counts["bytes"] / counts["tokens"] if counts["tokens"] else 0.0
        lines.append(f"{name:<16}{counts['documents']:>12,}{counts['tokens']:>16,}{counts['bytes']:>16,}{ratio:>13.3f}")
    weights, epochs = card["mixture"].get("weights", {}), card["mixture"].get("epochs", {})
    lines += ["", f"{'domain':<16}{'of a run':>12}{'epochs':>16}"]
    for name, weight in weights.items():
        lines.append(f"{name:<16}{weight:>12.1%}{'-' if epochs.get(name) is None else format(epochs[name], '.2f'):>16}")
    for name, source in card["sources"].items():
        lines += ["", f"{name}: {source_sentence(source)}"]
        lines.append(f"  {'after':<24}{'documents':>12}{'bytes':>16}{'tokens':>14}{'bytes/token':>13}")
        for stage in source["stages"]:
            tokens = stage["tokens"]
            shown = "-" if tokens is None else f"~{compact(tokens)}" if stage["estimated"] else f"{tokens:,}"
            ratio = f"{stage['bytes'] / tokens:.2f}" if tokens else "-"
            lines.append(f"  {stage['name']:<24}{stage['documents']:>12,}{stage['bytes']:>16,}{shown:>14}{ratio:>13}")
        dropped = sorted(source["rejected"].items(), key=lambda pair: (-pair[1], pair[0]))
        lines += [f"  dropped {count:>10,}  {rule}" for rule, count in dropped]
    return printable("\n".join(lines))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
