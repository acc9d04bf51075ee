"""Sections of the data card about what the corpus was held against: itself, evaluation sets, good text."""

from collections.abc import Mapping
from typing import Any

from lm.report import data_card_texts as texts
from lm.report import page
from lm.report.data_card_charts import s_curve

Found = Mapping[str, Any]


def duplicates(found: Found | None) -> page.Markup | None:
    """Return how many duplicates there were, of which sizes and sources, with pairs to read; None: not looked for."""
    if not found:
        return None
    parameters = found.get("parameters", {})
    curve = parameters.get("s_curve") or []
    figures = [
        ("Near-duplicate documents", f"{found.get('near', 0):,}", "a better copy was kept"),
        ("Exact duplicates", f"{found.get('exact', 0):,}", "same text, normalized"),
        ("Paragraphs dropped", f"{found.get('paragraphs', 0):,}", "they stand elsewhere, too"),
    ]
    sizes = (found.get("clusters") or {}).get("sizes") or {}
    table = (
        page.table(
            ["documents in a cluster", "clusters"],
            [(f"{int(n):,}", f"{count:,}") for n, count in sorted(sizes.items(), key=lambda pair: int(pair[0]))[:20]],
            numeric=(0, 1),
        )
        if sizes
        else None
    )
    between = [
        (lost, kept, f"{count:,}")
        for lost, kept, count in sorted(found.get("between") or (), key=lambda row: (-row[2], row[:2]))
    ]
    svg = s_curve(curve, parameters.get("threshold")) if curve else None
    known = {name.replace("_", " "): value for name, value in parameters.items() if name != "s_curve"}
    known = {name: ("no", "yes")[value] if isinstance(value, bool) else value for name, value in known.items()}
    pairs = {"candidates": "pairs compared", "verified": "pairs at the threshold or above"}
    known |= {text: f"{found[name]:,}" for name, text in pairs.items() if name in found}
    return page.section(
        "Duplicates",
        page.numbers(figures),
        page.grid(
            page.figure(svg, "Chance that two documents are compared, by their similarity; line: threshold")
            if svg
            else None,
            page.Markup(f"<div>{page.join([page.facts(known), table])}</div>"),
        ),
        page.join(
            [page.heading("Between sources"), page.table(["dropped from", "kept in", "documents"], between, (2,))]
        )
        if between
        else None,
        *texts.pairs(found.get("pairs") or ()),
    )


def decontamination(found: Found | None) -> page.Markup:
    """Return how many documents each evaluation set took out."""
    if found is None:
        line = "The corpus was not held against evaluation sets: scores on public benchmarks may be too good."
        return page.section("Decontamination", page.paragraph(line))
    what = f"share {found['words']}-grams of words with" if found.get("words") else "hold pieces of"
    limit = f", more than {found['max_overlap']:.1%} of their own" if found.get("max_overlap") else ""
    rows = [(path, f"{count:,}") for path, count in found["sets"].items()]
    return page.section(
        "Decontamination",
        page.paragraph(f"Documents that {what} an evaluation set{limit} are dropped."),
        page.table(["evaluation set", "documents dropped"], rows, numeric=(1,))
        if rows
        else page.paragraph("There were none."),
    )


def quality(found: Found | None) -> page.Markup | None:
    """Return how well the classifier tells good from ordinary text, and by what; None: there is none."""
    if not found:
        return None
    grams, documents = found.get("top_ngrams") or {}, found.get("documents") or {}
    words = {f"speaks for {kind}": " · ".join(str(gram[0]) for gram in own) for kind, own in grams.items()}
    error = f" ± {found['auc_error']:.4f}" if found.get("auc_error") else ""
    held = " and ".join(f"{count:,} {kind}" for kind, count in documents.items())
    rows = [
        (f"{row['threshold']:g}", f"{row['recall']:.1%}", f"{row['ordinary_kept']:.1%}")
        for row in found.get("thresholds") or ()
    ]
    header = ["least score", "of the good kept", "of the ordinary kept"]
    return page.section(
        "Quality classifier",
        page.paragraph(
            f"AUC {found['auc']:.4f}{error} on held-out documents ({held or 'of unknown number'}): "
            "the chance that a good one scores above an ordinary one."
        ),
        page.facts(words) if words else None,
        page.table(header, rows, numeric=(0, 1, 2)) if rows else None,
    )
