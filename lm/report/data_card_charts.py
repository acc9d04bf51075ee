"""Charts of the data card as inline SVG: histograms of documents, and the S-curve of MinHash."""

from collections.abc import Sequence
from typing import Any

from lm.report.plots import INK, Series, draw, dress, line_plot, stand_in

_WIDTH, _HEIGHT = 420, 210


def length_histogram(
    edges: Sequence[float], read: Sequence[int], kept: Sequence[int], name: str, source: str
) -> str | None:
    """Return documents by length, those read behind those kept; None without a document.

    `read` and `kept` have one count more than there are edges: below the first, and from the last on.
    """
    filled = [place for place, count in enumerate(read) if count or kept[place]]
    if not filled:
        return None
    low, high = filled[0], filled[-1] + 1
    labels = ["0", *map(_bytes, edges), ""]
    return _histogram(
        [("read", read[low:high]), ("kept", kept[low:high])],
        labels[low : high + 1],
        name=name,
        description=f"Documents of {source} by their length in bytes, before and after",
    )


def quality_histogram(
    edges: Sequence[float], kept: Sequence[int], rejected: Sequence[int], name: str, source: str
) -> str | None:
    """Return documents by quality score, all that have one behind those kept; None without a score."""
    scored = [a + b for a, b in zip(kept, rejected, strict=True)]
    if not sum(scored):
        return None
    labels = [f"{edge:g}" if place % 5 == 0 else "" for place, edge in enumerate(edges)]
    return _histogram(
        [("scored", scored), ("kept", kept)],
        labels,
        name=name,
        description=f"Documents of {source} by their quality score, those kept and those dropped",
    )


def _histogram(
    series: Sequence[tuple[str, Sequence[int]]], labels: Sequence[str], *, name: str, description: str
) -> str:
    """Return bars between labelled edges: the first series pale, the second strong before it."""

    def paint(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for (label, counts), alpha in zip(series, (0.3, 1.0), strict=True):
            centres = [place + 0.5 for place in range(len(counts))]
            axes.bar(centres, counts, width=0.86, color=stand_in(0), alpha=alpha, linewidth=0, label=label)
        axes.set_xlim(0, len(labels) - 1)
        room = max(1, round(len(labels) / 8)) if all(labels[:-1]) else 1
        ticks = [place for place in range(0, len(labels), room) if labels[place]]
        axes.set_xticks(ticks, [labels[place] for place in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        dress(axes, "y")
        axes.legend(frameon=False, labelcolor=INK, loc="upper right", fontsize=10)

    return draw(paint, name=name, description=description, width=_WIDTH, height=_HEIGHT)


def s_curve(points: Sequence[Sequence[float]], threshold: float | None) -> str | None:
    """Return the chance that LSH compares two documents over their similarity, and a line at the threshold."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    lines = [Series(x, y)]
    if threshold is not None:
        lines.append(Series([threshold, threshold], [0.0, 1.0], color=1))
    return line_plot(
        lines,
        name="s-curve",
        description="Chance that MinHash LSH compares two documents, by their Jaccard similarity",
        x_label="Jaccard similarity",
        from_zero=True,
        bulk=1.0,
        width=_WIDTH,
        height=_HEIGHT,
    )


def _bytes(edge: float) -> str:
    for scale, unit in ((2**20, "M"), (2**10, "k")):
        if edge >= scale:
            return f"{edge / scale:g}{unit}"
    return f"{edge:g}"
