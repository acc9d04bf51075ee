"""Charts of a sweep as inline SVG: differences with their intervals, and a grid of two swept fields."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lm.report.plots import INK, draw, dress, label_text, stand_in

_COLORS = {"better": 2, "worse": 5}  # of the page's series: green and red; a verdict is written beside it, too
_LABEL = 12.0  # pixels of a row's label
_FARTHEST = 4.0  # times what three quarters of the rows need: a row beyond leaves the chart


@dataclasses.dataclass(frozen=True)
class Interval:
    """One row: a mean with its interval (None: not known) and the single values behind it."""

    label: str
    mean: float
    values: Sequence[float]
    low: float | None = None
    high: float | None = None
    kind: Literal["better", "worse", "neither"] = "neither"
    remark: str = ""  # at the end of the row


def interval_chart(
    rows: Sequence[Interval],
    *,
    name: str,
    description: str,
    x_label: str,
    width: float = 876,
    labels_above: bool = False,
) -> str | None:
    """Return rows of intervals around a line at zero, or None without a row.

    Args:
      rows: from top to bottom; each has a finite mean.
      name: a short name, unique on the page.
      description: what a reader who does not see the chart is told.
      width: CSS pixels.
      labels_above: the labels stand over their rows and not beside them: for a narrow page.
    """
    if not rows:
        return None
    left, right = _limits(rows)

    def paint(axes: Any) -> None:
        axes.set_xlim(left, right)
        axes.set_ylim(len(rows) - 0.4, -0.9 if labels_above else -0.6)
        axes.axvline(0, color=INK, alpha=0.55, linewidth=1)
        for place, row in enumerate(rows):
            color, alpha = (stand_in(_COLORS[row.kind]), 1.0) if row.kind in _COLORS else (INK, 0.6)
            if row.low is not None and row.high is not None:
                axes.plot(
                    [row.low, row.high], [place, place], color=color, alpha=alpha, linewidth=2, solid_capstyle="round"
                )
            axes.plot(
                row.values,
                [place] * len(row.values),
                "|",
                color=color,
                alpha=0.6 * alpha,
                markersize=9,
                markeredgewidth=1.2,
            )
            if left <= row.mean <= right:
                axes.plot(row.mean, place, "o", color=color, alpha=1.0, markersize=6.5)
            else:
                at, mark = (left, "<") if row.mean < left else (right, ">")
                axes.plot(at, place, mark, color=color, markersize=7, clip_on=False)
            beside = {"color": color if row.kind in _COLORS else INK, "fontsize": _LABEL, "va": "center"}
            if labels_above:
                label, across = label_text(row.label), axes.get_yaxis_transform()
                axes.text(0.0, place - 0.42, label, transform=across, fontsize=_LABEL, va="center", color=INK)
                axes.text(1.0, place - 0.42, row.remark, transform=across, ha="right", **beside)
            else:
                axes.text(1.015, place, row.remark, transform=axes.get_yaxis_transform(), **beside)
        if labels_above:
            axes.set_yticks([])
        else:
            axes.set_yticks(range(len(rows)), [label_text(row.label) for row in rows])
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(max(3, int(width / 120)), steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.6g}'):g}"))
        axes.set_xlabel(label_text(x_label), color=INK)
        dress(axes, "x")
        if not labels_above:
            axes.tick_params(axis="y", labelsize=_LABEL)

    height = 56 + len(rows) * (40 if labels_above else 26)
    return draw(paint, name=name, description=description, width=width, height=height)


def _limits(rows: Sequence[Interval]) -> tuple[float, float]:
    """Return the x limits: zero and all rows, but for the few that would squeeze the others."""

    def reach(row: Interval) -> list[float]:
        return [v for v in (row.low, row.high, row.mean, *row.values) if v is not None and np.isfinite(v)]

    far = np.array([max(abs(v) for v in reach(row)) for row in rows])
    enough = float(np.quantile(far, 0.75)) * _FARTHEST
    shown = [v for row, most in zip(rows, far, strict=True) if most <= enough or enough == 0 for v in reach(row)]
    low, high = min([0.0, *shown]), max([0.0, *shown])
    margin = 0.04 * (high - low) or 1e-3
    return low - margin, high + margin


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    name: str,
    description: str,
    x_label: str,
    y_label: str,
    form: str = ".4f",
    width: float = 876,
) -> str | None:
    """Return a grid of cells, the lower the stronger, the lowest framed; None without a finite value.

    Args:
      values: `[rows, columns]`; NaN: an empty cell.
      rows, columns: their names, rows from top to bottom.
      form: of the number in a cell.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    low, middle, high = finite.min(), np.median(finite), finite.max()
    worst = min(high, middle + 2 * (middle - low)) if middle > low else high  # what diverged must not bleach the rest

    def paint(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        size = min(10.0, (width - 120) / len(columns) / 5)
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            corner = (column - 0.48, row - 0.46)
            if not np.isfinite(value):
                axes.text(column, row, "-", ha="center", va="center", color=INK, fontsize=size, alpha=0.5)
                continue
            strength = 0.06 + 0.5 * (1 - min(1.0, (value - low) / (worst - low)) if worst > low else 1.0)
            axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=stand_in(0), alpha=strength, linewidth=0))
            if value == low:
                axes.add_patch(Rectangle(corner, 0.96, 0.92, fill=False, edgecolor=INK, linewidth=1.5))
            if size >= 6:
                axes.text(column, row, format(value, form), ha="center", va="center", color=INK, fontsize=size)
        axes.set_xticks(range(len(columns)), [label_text(column) for column in columns])
        axes.set_yticks(range(len(rows)), [label_text(row) for row in rows])
        axes.set_xlabel(label_text(x_label), color=INK)
        axes.set_ylabel(label_text(y_label), color=INK)
        dress(axes, None)
        axes.spines["bottom"].set_visible(False)

    return draw(paint, name=name, description=description, width=width, height=70 + 38 * len(rows))
