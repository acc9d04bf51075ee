"""The frame and the pieces of a report page: one HTML file that needs nothing else.

Every piece takes plain text, which it escapes, or `Markup`, which is HTML already, and returns `Markup`.
"""

import html
from collections.abc import Iterable, Mapping, Sequence

from lm.train.console import printable


class Markup(str):
    """HTML that is safe to put in a page as it is."""

    __slots__ = ()


def escape(content: object) -> Markup:
    """Return content as HTML: escaped, and without control characters, unless it is `Markup`."""
    return content if isinstance(content, Markup) else Markup(html.escape(printable(str(content))))


def join(pieces: Iterable[object]) -> Markup:
    """Return pieces one after the other; None is left out."""
    return Markup("\n".join(escape(piece) for piece in pieces if piece is not None))


def page(title: str, subtitle: str, *pieces: object, style: str = "") -> Markup:
    """Return the whole page with its heading and its style; `style` is what only this page needs."""
    return Markup(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
</header>
{join(pieces)}
</main>
</body>
</html>
"""
    )


def section(heading: str, *pieces: object) -> Markup:
    """Return a section under its heading."""
    return Markup(f"<section>\n<h2>{escape(heading)}</h2>\n{join(pieces)}\n</section>")


def heading(text: str) -> Markup:
    """Return a heading below a section's."""
    return Markup(f"<h3>{escape(text)}</h3>")


def notice(text: str) -> Markup:
    """Return a line that must not be overlooked."""
    return Markup(f'<p class="notice" role="note">{escape(text)}</p>')


def paragraph(text: object) -> Markup:
    return Markup(f"<p>{escape(text)}</p>")


def statements(lines: Iterable[tuple[str, object]]) -> Markup:
    """Return `(kind, sentence)` as a list; `better` and `worse` have their colours, `remark` is quiet, `lead` stands out."""
    items = "\n".join(f'<li class="{escape(kind)}">{escape(sentence)}</li>' for kind, sentence in lines)
    return Markup(f'<ul class="statements">\n{items}\n</ul>')


def numbers(figures: Sequence[tuple[str, str, str]]) -> Markup:
    """Return `(name, value, remark)` as a grid of figures; the first stands out."""
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}"
        + (f"<small>{escape(remark)}</small>" if remark else "")
        + "</dd></div>"
        for name, value, remark in figures
    )
    return Markup(f'<dl class="numbers">\n{chr(10).join(cells)}\n</dl>')


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[int] = (), kind: str = ""
) -> Markup:
    """Return a table; `numeric` names the columns whose cells are numbers, set flush right.

    `kind` is a class of the style: in a `tight` one no line is broken.
    """

    def row_of(cells: Sequence[object], tag: str, attribute: str = "") -> str:
        kinds = [' class="number"' if column in numeric else "" for column in range(len(cells))]
        return "".join(
            f"<{tag}{attribute}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )

    head = "<thead><tr>" + row_of(header, "th", ' scope="col"') + "</tr></thead>"
    body = "\n".join(f"<tr>{row_of(row, 'td')}</tr>" for row in rows)
    opened = f" {escape(kind)}" if kind else ""
    return Markup(f'<div class="scroll{opened}"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>')


def facts(values: Mapping[str, object]) -> Markup:
    """Return `{name: value}` as a two-column list."""
    rows = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return Markup(f'<dl class="facts">\n{rows}\n</dl>')


def fold(summary: str, *pieces: object) -> Markup:
    """Return pieces behind a summary that opens on a click."""
    return Markup(f"<details>\n<summary>{escape(summary)}</summary>\n{join(pieces)}\n</details>")


def figure(svg: str, caption: str, kind: str = "") -> Markup:
    """Return a plot with its caption; `kind` is a class of the style (`wide`, `narrow`)."""
    return Markup(f'<figure class="{escape(kind)}">\n<figcaption>{escape(caption)}</figcaption>\n{svg}\n</figure>')


def grid(*pieces: object) -> Markup:
    """Return pieces side by side where there is room."""
    return Markup(f'<div class="grid">\n{join(pieces)}\n</div>')


def bar(parts: Iterable[tuple[str, float, str]]) -> Markup:
    """Return `(name, share, colour)` as one bar, from left to right; shares of less than 1 in all leave room.

    The names come up under the pointer, and are read out. A colour is CSS's.
    """
    shown = [(f"{name} {share:.1%}", share, color) for name, share, color in parts if share > 0]
    pieces = "".join(
        f'<span style="width:{100 * share:.3f}%;background:{escape(color)}" title="{escape(text)}"></span>'
        for text, share, color in shown
    )
    label = escape(", ".join(text for text, _, _ in shown))
    return Markup(f'<div class="bar" role="img" aria-label="{label}">{pieces}</div>')


def keyed(text: str, color: str) -> Markup:
    """Return text after a patch of the colour that stands for it in a `bar`."""
    return Markup(f'<span class="key" style="background:{escape(color)}"></span>{escape(text)}')


def verbatim(text: str) -> Markup:
    """Return text with its line breaks and spaces kept."""
    return Markup(f"<pre>{escape(text)}</pre>")


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #23262b; --quiet: #6a7079; --rule: #e3e4e2; --raised: #f5f5f2; --alarm: #a33a1f;
  --series-0: #2f6fb0; --series-1: #c6601a; --series-2: #3f8a54; --series-3: #94529a; --series-4: #96761a;
  --series-5: #b8445a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #dfe1e4; --quiet: #969ca5; --rule: #2e3237; --raised: #1d2024; --alarm: #ef8a6a;
    --series-0: #76aee6; --series-1: #f0985a; --series-2: #79c28d; --series-3: #cb93d0; --series-4: #d3b45a;
    --series-5: #ec8b9d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 940px; margin: 0 auto; padding: 56px 32px 96px; }
header { margin-bottom: 32px; }
h1 { margin: 0; font-size: 28px; font-weight: 600; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 4px 0 0; color: var(--quiet); overflow-wrap: anywhere; }
h2 { margin: 56px 0 12px; font-size: 18px; font-weight: 600; }
p { max-width: 68ch; margin: 8px 0; }
dl, dd { margin: 0; }
.notice { max-width: none; margin: 0 0 16px; padding: 8px 16px; border-left: 3px solid var(--alarm);
  background: var(--raised); }
.statements { margin: 0 0 20px; padding: 0; list-style: none; }
.statements li { max-width: 76ch; margin: 0 0 8px; padding: 2px 0 2px 14px; border-left: 3px solid var(--rule);
  overflow-wrap: anywhere; }
.statements li:first-child { font-weight: 600; }
.statements .lead { padding-left: 0; border: 0; }
.statements .better { border-color: var(--series-2); }
.statements .worse { border-color: var(--series-5); }
.statements .remark { border-color: transparent; color: var(--quiet); }
.better > b { color: var(--series-2); }
.worse > b { color: var(--series-5); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 20px 24px;
  padding: 20px 0; border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
.numbers dt { color: var(--quiet); font-size: 13px; line-height: 1.4; }
.numbers dd { font-size: 22px; font-variant-numeric: tabular-nums; line-height: 1.3; overflow-wrap: anywhere; }
.numbers div:first-child dd { font-weight: 650; color: var(--series-1); }
.numbers small { display: block; color: var(--quiet); font-size: 13px; font-weight: 400; line-height: 1.4; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 28px 32px; }
figure { margin: 0 0 24px; }
figcaption { margin-bottom: 4px; font-size: 14px; font-weight: 600; }
.grid figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
figure.narrow { display: none; }
pre { margin: 8px 0 16px; padding: 14px 16px; background: var(--raised); border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--quiet); }
summary:hover { color: var(--ink); }
details[open] > summary { margin-bottom: 8px; }
h3 { margin: 20px 0 4px; font-size: 14px; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; min-width: 50%; }
th, td { padding: 5px 24px 5px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--quiet); font-weight: 400; }
td:first-child { white-space: nowrap; }
td:not(:first-child) { min-width: 5em; }
.number { text-align: right; white-space: nowrap; }
th { white-space: nowrap; }
.tight th, .tight td { padding-right: 18px; white-space: nowrap; }
.bar { display: flex; height: 20px; margin: 12px 0 16px; border-radius: 3px; overflow: hidden; }
td .bar { height: 12px; width: 160px; margin: 5px 0 0; }
.bar span { flex: none; }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 2px; }
.bar span, .key { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.facts { font-size: 14px; }
.facts div { display: grid; grid-template-columns: 150px 1fr; gap: 16px; padding: 5px 0;
  border-bottom: 1px solid var(--rule); }
.facts dt { color: var(--quiet); }
.facts dd { overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 28px 18px 56px; }
  h1 { font-size: 24px; }
  th, td { padding-right: 14px; }
  h2 { margin-top: 40px; }
  .numbers { grid-template-columns: repeat(2, 1fr); gap: 16px; }
  .numbers dd { font-size: 19px; }
  figure.wide { display: none; }
  figure.narrow { display: block; }
  .facts div { grid-template-columns: 1fr; gap: 0; }
}
@media print {
  :root { --paper: #fff; --ink: #111; --quiet: #555; --rule: #ccc; --raised: #fff; color-scheme: light; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  pre { border: 1px solid var(--rule); }
  figure, tr, .numbers div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
