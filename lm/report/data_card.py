"""The data card as a page: what one looks at before a month of training is spent on a corpus.

The content is `card.json`, whose fields `lm.corpus.card` describes.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm.report import data_card_checks as checks
from lm.report import data_card_texts as texts
from lm.report import page
from lm.report.data_card_charts import length_histogram, quality_histogram
from lm.report.data_card_words import doubts, problems, size, source_sentence, verdict
from lm.report.plots import SERIES_COLORS
from lm.train.console import compact, duration

Card = Mapping[str, Any]
_OPEN_SKIPPED = 5  # skipped documents per source that are not folded away
_OPEN_HISTOGRAMS = 8  # sources
_MOST_NAMES = 12  # languages or licenses of a source
_LINES = " lines"  # after the name of a rule that drops lines, where they are counted
_WIDE_SOURCES = 5  # more do not fit beside each other in a table


def card_page(card: Card) -> str:
    """Return the page about a corpus: one HTML file that needs nothing else; the same card gives the same page."""
    subtitle = f"{card['hash'][:16]} · built {card['created'][:10]} · lm {card['lm_version']}"
    return page.page(
        f"Data card: {card['name']}",
        subtitle,
        *(page.notice(problem) for problem in problems(card)),
        page.statements([*verdict(card), *(("worse", doubt) for doubt in doubts(card))]),
        page.numbers(_headline(card)),
        page.verbatim(card["command"]),
        _mixture(card),
        _funnel(card),
        _rules(card),
        _changes(card),
        _unreadable(card),
        checks.duplicates(card.get("duplicates")),
        checks.decontamination(card.get("decontamination")),
        checks.quality(card.get("quality_classifier")),
        _histograms(card),
        _names(card),
        _samples(card),
        _origin(card),
        style=texts.STYLE,
    )


def _headline(card: Card) -> list[tuple[str, str, str]]:
    splits, sources = card["splits"], card["sources"].values()
    tokens, documents, kept = (sum(s[key] for s in splits.values()) for key in ("tokens", "documents", "bytes"))
    read = sum(source["stages"][0]["bytes"] for source in sources)
    seen = sum(source["stages"][0]["documents"] for source in sources)
    held_out = ", ".join(
        f"{compact(split['tokens'])} {name}" for name, split in splits.items() if name != "train" and split["tokens"]
    )
    figures = [
        ("Tokens", compact(tokens), f"of which {held_out}" if held_out else "all for training"),
        ("Documents", compact(documents), f"of {compact(seen)} read"),
        ("Text", size(kept), f"of {size(read)} read"),
        ("Bytes per token", f"{kept / tokens:.3f}" if tokens else "-", card["tokenizer"].get("name", "")),
    ]
    if card.get("duplicates"):
        found = card["duplicates"]
        count = found.get("exact", 0) + found.get("near", 0)
        figures.append(("Duplicates dropped", compact(count), f"{compact(found.get('near', 0))} of them near"))
    if card["seconds"]:
        figures.append(("Last start took", duration(sum(card["seconds"].values())), ""))
    return figures


def _mixture(card: Card) -> page.Markup:
    domains: dict[str, collections.Counter] = {}
    for source in card["sources"].values():
        last = source["stages"][-1]
        counts = domains.setdefault(source["domain"], collections.Counter())
        counts.update({key: last[key] or 0 for key in ("documents", "bytes", "tokens")}, sources=1)
    total = sum(counts["tokens"] for counts in domains.values())
    weights, epochs = card["mixture"].get("weights", {}), card["mixture"].get("epochs", {})
    colors = _colors(domains)
    rows = [
        [
            page.keyed(name, colors[name]),
            f"{counts['documents']:,}",
            size(counts["bytes"]),
            f"{counts['tokens']:,}",
            _ratio(counts["bytes"], counts["tokens"]),
            f"{counts['tokens'] / total:.1%}" if total else "-",
            f"{weights[name]:.1%}" if name in weights else "-",
            f"{epochs[name]:.2f}" if epochs.get(name) is not None else "-",
        ]
        for name, counts in domains.items()
    ]
    budget = card["mixture"].get("tokens")
    how = {"temperature": "by temperature", "proportional": "proportional to tokens"}.get(
        card["mixture"].get("weighting"), card["mixture"].get("weighting")
    )
    over = f"Epochs are of a run of {compact(budget)} tokens." if budget else ""
    header = ["domain", "documents", "text", "tokens", "bytes/token", "share", "share of a run", "epochs"]
    return page.section(
        "Mixture",
        page.paragraph(" ".join(part for part in (f"Weights are {how}." if how else "", over) if part)),
        page.bar([(name, weights.get(name, 0.0), colors[name]) for name in domains]),
        page.table(header, rows, numeric=range(1, len(header)), kind="tight"),
    )


def _funnel(card: Card) -> page.Markup:
    pieces: list[Any] = []
    for name, source in card["sources"].items():
        stages = source["stages"]
        first, rows = stages[0], []
        for before, stage in zip([None, *stages[:-1]], stages, strict=True):
            rows.append(
                [
                    stage["name"],
                    f"{stage['documents']:,}",
                    _loss(before and before["documents"], stage["documents"]),
                    size(stage["bytes"]),
                    _tokens(stage),
                    _ratio(stage["bytes"], stage["tokens"]),
                    _share_bar(stage["bytes"], first["bytes"]),
                ]
            )
        header = ["after", "documents", "", "text", "tokens", "bytes/token", "of the text read"]
        pieces += [
            page.heading(name),
            page.paragraph(source_sentence(source)),
            page.table(header, rows, numeric=range(1, 6), kind="tight"),
        ]
    estimated = any(stage["estimated"] for source in card["sources"].values() for stage in source["stages"])
    note = "≈: tokens of what is not tokenized are estimated from excerpts of a few documents." if estimated else None
    return page.section("From what was read to what was kept", page.paragraph(note) if note else None, *pieces)


def _rules(card: Card) -> page.Markup:
    sources, rules = card["sources"], card["rules"]
    dropped = {rule for source in sources.values() for rule in source["rejected"]}
    changed = {change.removesuffix(_LINES) for source in sources.values() for change in source["changes"]}
    asked = {name for source in card["config"].get("sources", {}).values() for name in source.get("filters", ())}
    # The rules in the order of the table of filters; those that it does not know (duplicates) after them.
    known = [rule for rule in rules if rule in dropped or (rule.partition("/")[0] in asked and rule not in changed)]
    shown = list(sources) if 1 < len(sources) <= _WIDE_SOURCES else []
    whole = sum(source["stages"][0]["documents"] for source in sources.values())
    loud, quiet = [], []
    for rule in [*known, *sorted(dropped - set(known))]:
        counts = {name: source["rejected"].get(rule, 0) for name, source in sources.items()}
        parts = [_part(counts[name], sources[name]["stages"][0]["documents"]) for name in shown]
        row = [_rule(rule, rules), *parts, _part(sum(counts.values()), whole)]
        (loud if any(counts.values()) else quiet).append(row)
    origins = [
        (rule, rules[rule]["origin"]) for rule in rules if rule in (*known, *changed) and "origin" in rules[rule]
    ]
    header = ["rule", *shown, "all" if shown else "documents"]
    numeric = range(1, len(header))
    return page.section(
        "What was dropped, by rule",
        page.paragraph("Documents, and their share of those read. A document counts for the first rule that it broke."),
        page.table(header, loud, numeric, "rules") if loud else page.paragraph("No document was dropped."),
        page.fold(f"Rules that dropped no document ({len(quiet)})", page.table(header, quiet, numeric, "rules"))
        if quiet
        else None,
        page.fold("Where the thresholds are from", page.table(["rule", "origin"], origins)) if origins else None,
    )


def _rule(rule: str, rules: Mapping[str, Mapping[str, str]]) -> object:
    """Return a rule's name over what it drops, if that is known."""
    drops = rules.get(rule.removesuffix(_LINES), {}).get("drops")
    return page.Markup(f"{page.escape(rule)}<small>{page.escape(drops)}</small>") if drops else rule


def _changes(card: Card) -> page.Markup | None:
    sources = card["sources"]
    names = sorted({name for source in sources.values() for name in source["changes"]})
    if not names:
        return None
    shown = list(sources) if 1 < len(sources) <= _WIDE_SOURCES else []
    rows = []
    for name in names:
        counts = [source["changes"].get(name, 0) for source in sources.values()]
        cells = [f"{n:,}" if n else "" for n in (counts if shown else [])]
        rows.append([_rule(name, card["rules"]), *cells, f"{sum(counts):,}"])
    header = ["step and change", *shown, "all" if shown else "times"]
    return page.section(
        "What was changed in the text", page.table(header, rows, numeric=range(1, len(header)), kind="rules")
    )


def _unreadable(card: Card) -> page.Markup | None:
    pieces: list[Any] = []
    for name, source in card["sources"].items():
        if source["damaged"]:
            rows = [(entry["path"], entry["reason"]) for entry in source["damaged"]]
            pieces += [page.heading(f"{name}: damaged files"), page.table(["file", "what is wrong"], rows)]
        if source["skipped_count"]:
            rows = [(entry["where"], entry["reason"]) for entry in source["skipped"]]
            more = source["skipped_count"] - len(rows)
            table = page.table(["where", "why"], rows[:_OPEN_SKIPPED])
            pieces += [page.heading(f"{name}: {source['skipped_count']:,} documents skipped"), table]
            if len(rows) > _OPEN_SKIPPED:
                rest = page.table(["where", "why"], rows[_OPEN_SKIPPED:])
                pieces.append(page.fold(f"{len(rows) - _OPEN_SKIPPED} more", rest))
            if more > 0:
                pieces.append(page.paragraph(f"{more:,} others are not listed."))
    return page.section("What could not be read", *pieces) if pieces else None


def _histograms(card: Card) -> page.Markup:
    plots = []
    for place, (name, source) in enumerate(card["sources"].items()):
        lengths, quality = source["lengths"], source["quality"]
        svg = length_histogram(lengths["edges"], lengths["read"], lengths["kept"], f"length-{place}", name)
        plots.append(page.figure(svg, f"{name}: bytes per document") if svg else None)
        svg = quality_histogram(quality["edges"], quality["kept"], quality["rejected"], f"quality-{place}", name)
        plots.append(page.figure(svg, f"{name}: quality score") if svg else None)
    shown = [plot for plot in plots if plot]
    if not shown:
        return page.section("Lengths and quality", page.paragraph("There is no document."))
    first, rest = shown[: 2 * _OPEN_HISTOGRAMS], shown[2 * _OPEN_HISTOGRAMS :]
    more = page.fold(f"{len(rest)} more", page.grid(*rest)) if rest else None
    return page.section("Lengths and quality", page.grid(*first), more)


def _names(card: Card) -> page.Markup:
    pieces = []
    for kind, heading in (("languages", "Languages"), ("licenses", "Licenses")):
        rows = []
        for name, source in card["sources"].items():
            counts = source[kind]
            documents = source["stages"][-1]["documents"]
            ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            parts = [f"{label} {_part(count, documents)}" for label, count in ordered[:_MOST_NAMES]]
            if len(ordered) > _MOST_NAMES:
                parts.append(f"{len(ordered) - _MOST_NAMES} others {sum(c for _, c in ordered[_MOST_NAMES:]):,}")
            unknown = documents - sum(counts.values())
            if kind == "licenses" and unknown > 0 and source.get("license"):
                parts.append(f"{source['license']} {_part(unknown, documents)}, as declared in the config")
            elif unknown > 0 or not documents:
                parts.append(f"not known {_part(unknown, documents)}" if counts else "not known")
            rows.append([name, " · ".join(parts)])
        pieces.append(page.join([page.heading(heading), page.table(["source", "of the documents kept"], rows)]))
    return page.section("Languages and licenses", *pieces)


def _samples(card: Card) -> page.Markup:
    pieces: list[Any] = [page.paragraph("Drawn at random, the beginning of each.")]
    for name, source in card["sources"].items():
        code = source["reader"] == "code"
        pieces.append(page.heading(name))
        pieces.append(texts.kept(source["kept"], code))
        pieces.append(texts.rejected(source["rejected_samples"], source["rejected"], code))
    return page.section("Documents to read", *pieces)


def _origin(card: Card) -> page.Markup:
    tokenizer = card["tokenizer"]
    about = {
        "hash": card["hash"],
        "built": card["created"],
        "lm": card["lm_version"],
        "tokenizer": " · ".join(f"{name} {value}" for name, value in tokenizer.items() if value is not None),
        **{f"{name} split": _counts(counts) for name, counts in card["splits"].items()},
        **{
            f"{stage}, time": f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
            for stage, seconds in card["seconds"].items()
        },
    }
    inputs = [
        (name, file["path"], f"{file['bytes']:,}" if file.get("bytes") is not None else "-", file.get("sha256") or "-")
        for name, source in card["sources"].items()
        for file in source["files"]
    ]
    outputs = [(file["path"], f"{file['bytes']:,}", file.get("sha256") or "-") for file in card.get("outputs") or ()]
    return page.section(
        "Origin",
        page.facts(about),
        page.fold(
            f"Files read ({len(inputs)})", page.table(["source", "file", "bytes", "sha256"], inputs, numeric=(2,))
        ),
        page.fold(f"Files written ({len(outputs)})", page.table(["file", "bytes", "sha256"], outputs, numeric=(1,))),
        page.fold("Config", page.facts(dict(_flat(card["config"])))),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _counts(counts: Mapping[str, int]) -> str:
    return f"{counts['tokens']:,} tokens, {counts['documents']:,} documents, {counts['bytes']:,} bytes"


def _tokens(stage: Card) -> str:
    if stage["tokens"] is None:
        return "-"
    return f"≈ {compact(stage['tokens'])}" if stage["estimated"] else f"{stage['tokens']:,}"


def _ratio(count: float, by: float | None) -> str:
    return f"{count / by:.2f}" if by else "-"


def _loss(before: int | None, after: int) -> str:
    return f"-{1 - after / before:.1%}" if before and after < before else ""


def _part(count: int, whole: int) -> str:
    """Return a count with its share: `12 (1.3%)`; nothing for none."""
    if not count:
        return ""
    share = count / whole if whole else 0.0
    return f"{count:,} ({share:.1%})" if share >= 0.0005 else f"{count:,} (<0.1%)"


def _share_bar(part: int, whole: int) -> page.Markup:
    return page.bar([("kept", min(1.0, part / whole) if whole else 0.0, "var(--series-0)")])


def _colors(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    return {name: f"var(--series-{place % len(SERIES_COLORS)})" for place, name in enumerate(names)}
