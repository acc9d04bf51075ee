"""Plots as inline SVG that takes its colours and its font from the page around it.

matplotlib draws with stand-in colours, which are then exchanged for `currentColor` and the CSS
variables `--series-0`, `--series-1`, … (with a mid-tone behind each), so that one SVG reads well on a
light and on a dark page. The same input gives the same bytes: no dates, ids from a fixed salt.
"""

import dataclasses
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm.train.console import printable

# Mid-tones that hold on white and on near-black; a page may override them with --series-N.
SERIES_COLORS = ("#3f7fbf", "#d0702a", "#4c9a5f", "#a765a9", "#b08d22", "#c9566b")

MAX_POINTS = 800  # drawn per series: more cannot be told apart at a page's width
INK = "#010101"  # stands in for currentColor


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: `x` and `y` of the same length; NaN (or None) leaves a gap."""

    x: Sequence[float]
    y: Sequence[float | None]
    label: str | None = None  # in the legend; None: not in it
    color: int = 0  # index into SERIES_COLORS, repeated
    faint: bool = False  # the raw values behind a smoothed line
    points: bool = False  # mark each point (few of them, as with evaluations)
    low: Sequence[float] | None = None  # a band around the line, from here
    high: Sequence[float] | None = None  # to here
    plain: bool = False  # in the ink of the text, not in a colour

    def finite(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y as float64 arrays with every infinity turned into NaN."""
        y = np.array([np.nan if value is None else value for value in self.y], float)
        return np.array(self.x, float), np.where(np.isfinite(y), y, np.nan)


def smooth(y: Sequence[float | None], width: int | None = None) -> np.ndarray:
    """Return a centred moving average over about `width` values (default: a fortieth of them), gaps kept.

    Two passes of half the width make a triangular window: a spike becomes a bump, not a block. At
    the start the window grows on both sides alike, so that the steep fall of a loss isn't bent.
    """
    reach = (width or len(y) // 40) // 4
    values = np.array([np.nan if value is None else value for value in y], float)
    for _ in range(2):
        values = _moving_average(values, reach)
    return values


def _moving_average(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the mean of the finite values within `reach` places; NaN where the value itself is not finite."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    place = np.arange(len(values))
    low = place - np.minimum(reach, place)
    high = np.minimum(place + np.minimum(reach, place) + 1, len(values))
    return np.where(known, (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1), np.nan)


def line_plot(
    series: Sequence[Series],
    *,
    name: str,
    description: str,
    x_label: str = "step",
    y_label: str = "",
    width: float = 420,
    height: float = 250,
    from_zero: bool = False,
    bulk: float = 0.97,
    zero_line: bool = False,
    log_x: bool = False,
    x_ticks: Sequence[float] = (),
    legend: bool = True,
) -> str | None:
    """Return an SVG element, or None if there is no finite value to draw.

    Args:
      series: the lines, drawn in order.
      name: a short name, unique on the page; it keeps the SVG's internal ids apart.
      description: what a reader who does not see the plot is told.
      width, height: CSS pixels at which the text has its natural size; the SVG scales to its container.
      from_zero: the y axis starts at 0.
      bulk: the share of the values that must be seen; what lies far above them may leave at the top.
      zero_line: draw a line at y = 0, and show all values.
      log_x: the x axis is logarithmic.
      x_ticks: where its ticks are, as far as there is room; none: chosen.
      legend: name the lines.
    """
    drawn = [(item, *item.finite()) for item in series]
    drawn = [(item, x, y) for item, x, y in drawn if np.isfinite(y).any()]
    if not drawn:
        return None

    def paint(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

        for item, x, y in drawn:
            alone = np.isfinite(y).sum() == 1
            color = INK if item.plain else stand_in(item.color)
            if item.low is not None and item.high is not None:
                axes.fill_between(
                    x, np.array(item.low, float), np.array(item.high, float), color=color, alpha=0.16, linewidth=0
                )
            axes.plot(
                *_thin(x, y),
                color=color,
                alpha=0.35 if item.faint else 1.0,
                linewidth=0.9 if item.faint else 1.7,
                marker="o" if item.points or alone else None,
                markersize=4,
                label=label_text(item.label) if item.label else "_",
                solid_joinstyle="round",
                clip_on=not item.points,  # a mark on the edge is drawn whole
            )
        axes.set_xlabel(label_text(x_label), color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.margins(x=0.03 if log_x else 0.01)
        bands = [np.array(band, float) for item, _, _ in drawn for band in (item.low, item.high) if band is not None]
        heights = [*(y for _, _, y in drawn), *bands]
        axes.set_ylim(
            *_y_limits([*heights, np.zeros(1)] if zero_line else heights, from_zero, 1.0 if zero_line else bulk)
        )
        steps = np.concatenate([x for _, x, _ in drawn])
        round_steps = [1, 2, 2.5, 5, 10]
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            if steps.min() == steps.max():
                axes.set_xlim(steps[0] - 1, steps[0] + 1)
            integer = bool((steps[np.isfinite(steps)] % 1 == 0).all())
            axes.xaxis.set_major_locator(MaxNLocator(max(3, int(width / 90)), steps=round_steps, integer=integer))
        axes.yaxis.set_major_locator(MaxNLocator(max(3, int(height / 50)), steps=round_steps))
        for axis in (axes.xaxis, axes.yaxis):
            largest = max(abs(limit) for limit in axis.get_view_interval())
            axis.set_major_formatter(FuncFormatter(_tick_text(largest)))
        if len(x_ticks):
            places = _with_room(x_ticks, log_x, (width - 90) / 52)
            axes.set_xticks(places, [f"{place:g}" for place in places])
        dress(axes, "y")
        if zero_line:
            axes.axhline(0, color=INK, alpha=0.55, linewidth=1)
        if legend and any(item.label for item, _, _ in drawn):
            axes.legend(frameon=False, labelcolor=INK, loc="upper right", fontsize=10)

    return draw(paint, name=name, description=description, width=width, height=height)


def draw(paint: Callable[[Any], None], *, name: str, description: str, width: float, height: float) -> str:
    """Return an SVG element of what `paint(axes)` draws with matplotlib in the colours `INK` and `stand_in(n)`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    pixel = 1 / 72  # an SVG point becomes one CSS pixel through the viewBox
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify": True, "font.size": 11}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width * pixel, height * pixel), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out)
    return _adopt(out.getvalue(), description)


def dress(axes: Any, grid: str | None) -> None:
    """Give axes the look of all plots: no frame but a line below, faint lines across for `grid` ("x", "y")."""
    axes.tick_params(colors=INK, length=0, labelsize=10)
    if grid:
        axes.grid(axis=grid, color=INK, alpha=0.13, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set(color=INK, alpha=0.4, linewidth=0.8)


def label_text(text: str) -> str:
    """Return text as matplotlib draws it letter by letter: no mathematics, no control characters."""
    shown = printable(text).replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown  # else it is left out of the legend


def _with_room(places: Sequence[float], log: bool, most: float) -> list[float]:
    """Return those of some places on an axis that are no nearer to each other than a `most`-th of it."""
    kept: list[float] = []
    scale = np.log if log else np.asarray
    ordered = sorted(set(places))
    span = float(scale(ordered[-1]) - scale(ordered[0]))
    for place in ordered:
        if not kept or float(scale(place) - scale(kept[-1])) >= span / most:
            kept.append(place)
    return kept


def stand_in(color: int) -> str:
    """Return what matplotlib draws for the page's colour `--series-N`."""
    return f"#0202{color % len(SERIES_COLORS):02x}"


def _tick_text(largest: float) -> Callable[[float, int], str]:
    """Return a tick formatter with one unit for the whole axis: 0, 6k, 12k."""
    scale, unit = next(((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if largest >= 10 * s), (1, ""))
    return lambda value, _: f"{float(f'{value / scale:.6g}'):g}" + (unit if value else "")


def _y_limits(lines: Sequence[np.ndarray], from_zero: bool, bulk: float = 0.97) -> tuple[float, float]:
    """Return limits that show the bulk: the first steps' steep fall and lone spikes may leave at the top."""
    values = np.concatenate([y[np.isfinite(y)] for y in lines])
    low, high = (0.0 if from_zero else values.min()), values.max()
    body = np.quantile(values, bulk)
    if high - low > 2 * (body - low) > 0:
        high = body + 0.4 * (body - low)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if from_zero and high > 0 else low - margin), high + margin


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most about MAX_POINTS points: of each stretch its lowest and its highest, so spikes stay."""
    if len(x) <= MAX_POINTS:
        return x, y
    keep = set()
    for stretch in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        values = y[stretch]
        if np.isfinite(values).any():
            keep |= {stretch[np.nanargmin(values)], stretch[np.nanargmax(values)]}
        if np.isnan(values).any():
            keep.add(stretch[np.isnan(values)][0])  # a gap stays a gap
    index = np.array(sorted(keep))
    return x[index], y[index]


def _adopt(svg: str, description: str) -> str:
    """Turn matplotlib's stand-alone file into an element of a page."""
    svg = svg[svg.index("<svg") :]
    # The metadata hold the date; figure_1, axes_1, … are the same in every plot and no one refers to them.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    body = body.replace(INK, "currentColor")
    for index, color in enumerate(SERIES_COLORS):
        body = body.replace(stand_in(index), f"var(--series-{index}, {color})")
    label = html.escape(description)
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box} role="img" aria-label="{label}">{body.strip()}'
