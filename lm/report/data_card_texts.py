"""Documents on the data card: samples, and near-duplicates side by side with their differences marked.

Text of a corpus is anyone's text: all of it is escaped, keeps its own direction of writing, and no address is a link.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm.report import page

Sample = Mapping[str, Any]

# Words, and each character of the scripts that put no spaces between words.
_PIECES = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|\s+|[^\w\s]"
)
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_MOST_PIECES = 1200  # of a text whose differences are marked
_CONTEXT = 30  # pieces that are left at each end of a stretch that both have
_OPEN_SAMPLES = 3

STYLE = """
.document { margin: 0 0 14px; padding: 10px 16px 12px; background: var(--raised); border-radius: 6px; }
.document .about { max-width: none; margin: 0 0 6px; color: var(--quiet); font-size: 13px; overflow-wrap: anywhere; }
.document .about b { color: var(--ink); font-weight: 600; }
.document .text { max-height: 15em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px;
  line-height: 1.5; unicode-bidi: plaintext; text-align: start; }
.document .code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  unicode-bidi: normal; }
.numbers + .grid { margin: 20px 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 16px; margin: 0 0 8px; }
.pair .document { margin: 0 0 8px; min-width: 0; }
.pair .text { max-height: 22em; }
td .bar { background: var(--rule); }
.rules td:first-child { min-width: 22em; white-space: normal; }
.rules small { display: block; color: var(--quiet); font-size: 13px; line-height: 1.4; }
mark { color: inherit; background: color-mix(in srgb, var(--series-1) 28%, transparent); border-radius: 2px; }
@media (max-width: 640px) { .rules td:first-child { min-width: 12em; } .pair { grid-template-columns: 1fr; } }
@media print { .document { border: 1px solid var(--rule); } .document .text { max-height: none; } }
"""


def kept(samples: Sequence[Sample], code: bool = False) -> page.Markup:
    """Return samples of what was kept, the first few in sight."""
    if not samples:
        return page.paragraph("Nothing was kept.")
    shown = [document(sample, code=code) for sample in samples]
    rest = shown[_OPEN_SAMPLES:]
    return page.fold(
        f"Kept: {len(shown)} samples",
        *shown[:_OPEN_SAMPLES],
        page.fold(f"{len(rest)} more", *rest) if rest else None,
    )


def rejected(samples: Sequence[Sample], counts: Mapping[str, int], code: bool = False) -> page.Markup | None:
    """Return samples of what was dropped under the rule that dropped them."""
    rules = sorted({sample["rule"] for sample in samples}, key=lambda rule: (-counts.get(rule, 0), rule))
    if not rules:
        return None
    folds = [
        page.fold(
            f"{rule}: {counts.get(rule, 0):,} dropped",
            *(document(sample, code=code) for sample in samples if sample["rule"] == rule),
        )
        for rule in rules
    ]
    return page.fold(f"Dropped: samples of each rule ({len(rules)})", *folds)


def document(sample: Sample, *, code: bool = False, text: page.Markup | None = None) -> page.Markup:
    """Return one document with what is known of it; `text` stands for its own text, as HTML."""
    value = sample.get("value")
    title = sample.get("title")
    known = [
        page.Markup(f"<b>{_isolated(title or sample['id'])}</b>"),
        _isolated(sample["id"]) if title and title != sample["id"] else None,
        _isolated(sample["url"]) if sample.get("url") else None,
        page.escape(f"{sample['bytes']:,} bytes") if sample.get("bytes") is not None else None,
        page.escape(f"quality {sample['quality']:.3f}") if sample.get("quality") is not None else None,
        page.Markup(f"found {_isolated(_value(value))}") if value is not None else None,
    ]
    about = " · ".join(part for part in known if part)
    language = str(sample.get("language") or "")
    lang = f' lang="{language}"' if _LANGUAGE.fullmatch(language) else ""
    body = page.escape(sample["text"]) if text is None else text
    kind = "text code" if code else "text"
    return page.Markup(
        f'<div class="document">\n<p class="about">{about}</p>\n<div class="{kind}" dir="auto"{lang}>{body}</div>\n</div>'
    )


def pairs(found: Iterable[Mapping[str, Any]]) -> list[page.Markup]:
    """Return near-duplicates side by side; what one has and the other has not is marked. The first few in sight."""
    shown = []
    for pair in found:
        left, right = marked(pair["a"]["text"], pair["b"]["text"])
        sides = [_side(pair["a"], left), _side(pair["b"], right)]
        same = "" if "<mark>" in left + right else "; they are the same in what is shown"
        line = page.paragraph(f"Jaccard similarity {pair['jaccard']:.3f}{same}")
        shown.append(page.join([line, page.Markup(f'<div class="pair">\n{page.join(sides)}\n</div>')]))
    rest = shown[_OPEN_SAMPLES:]
    out = [page.heading("Pairs of near-duplicates")] if shown else []
    return [*out, *shown[:_OPEN_SAMPLES], *([page.fold(f"{len(rest)} more pairs", *rest)] if rest else [])]


def marked(a: str, b: str) -> tuple[page.Markup, page.Markup]:
    """Return both texts as HTML, with the words that only one of them has in `<mark>`, and long common stretches cut."""
    left, right = _PIECES.findall(a)[:_MOST_PIECES], _PIECES.findall(b)[:_MOST_PIECES]
    out: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for kind, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        for side, pieces in zip(out, (left[a_from:a_to], right[b_from:b_to]), strict=True):
            if kind == "equal" and len(pieces) > 3 * _CONTEXT:
                pieces = [*pieces[:_CONTEXT], " […] ", *pieces[-_CONTEXT:]]
            text = page.escape("".join(pieces))
            side.append(text if kind == "equal" or not text else f"<mark>{text}</mark>")
    return page.Markup("".join(out[0])), page.Markup("".join(out[1]))


def _side(side: Mapping[str, Any], text: page.Markup) -> page.Markup:
    return document({"id": f"{side['source']}: {side['id']}", "text": side["text"]}, text=text)


def _isolated(text: object) -> str:
    return f"<bdi>{page.escape(text)}</bdi>"


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
