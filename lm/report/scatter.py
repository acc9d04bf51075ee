"""Charts of a search as inline SVG: trials over one field of the config, or over two."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.report.plots import INK, draw, dress, label_text, stand_in

_GRID = 60  # points along an axis of the surface
_BANDS = 6  # of the surface, each with the same number of trials
_REACH = 0.12  # standard deviation of the surface's kernel, as a share of the axis


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field's values: numbers, or places 0, 1, … of `choices`."""

    label: str
    low: float
    high: float
    log: bool = False
    integer: bool = False
    choices: Sequence[str] = ()

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Return where values are between the ends, from 0 to 1."""
        low, high = (np.log(self.low), np.log(self.high)) if self.log else (self.low, self.high)
        return ((np.log(values) if self.log else values) - low) / (high - low)

    def dress(self, axes: Any, which: str, room: int) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        axis, limits = getattr(axes, f"{which}axis"), getattr(axes, f"set_{which}lim")
        if self.choices:
            limits(-0.5, len(self.choices) - 0.5)
            axis.set_ticks(range(len(self.choices)), [label_text(choice) for choice in self.choices])
        elif self.log:
            getattr(axes, f"set_{which}scale")("log")
            factor = (self.high / self.low) ** 0.03
            limits(self.low / factor, self.high * factor)
            subs = (
                (1.0, 2.0, 5.0) if self.high / self.low < 50 else (1.0, 3.0) if self.high / self.low < 3e3 else (1.0,)
            )
            axis.set_major_locator(LogLocator(subs=subs, numticks=room))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            margin = 0.03 * (self.high - self.low)
            limits(self.low - margin, self.high + margin)
            axis.set_major_locator(MaxNLocator(room, steps=[1, 2, 2.5, 5, 10], integer=self.integer))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.6g}'):g}"))
        getattr(axes, f"set_{which}label")(label_text(self.label), color=INK)


@dataclasses.dataclass(frozen=True)
class Points:
    """Trials: where they are and what they reached; arrays of one length."""

    x: np.ndarray
    value: np.ndarray
    is_whole: np.ndarray  # trained to the end; else drawn as a ring, at the last evaluation


def scatter(
    points: Points,
    axis: Axis,
    *,
    name: str,
    description: str,
    y_label: str = "",
    best_so_far: bool = False,
    width: float = 420,
    height: float = 250,
) -> str | None:
    """Return the value of each trial over a field, the best one in another colour; None without a trial.

    Values far above the others are arrows at the top edge.

    Args:
      points: the trials, and where they are across.
      axis: of the field.
      best_so_far: `x` is the order of the trials: draw a line of the lowest value of those whole until each.
      name, description, width, height: as `lm.report.plots.line_plot`.
    """
    if not points.value.size:
        return None
    low, high = _limits(points)

    def paint(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.set_ylim(low, high)
        inside = points.value <= high
        for chosen, look in (
            (points.is_whole & inside, {"marker": "o", "markeredgewidth": 0}),
            (~points.is_whole & inside, {"marker": "o", "markerfacecolor": "none", "markeredgewidth": 1.1}),
        ):
            axes.plot(
                points.x[chosen],
                points.value[chosen],
                linestyle="",
                color=stand_in(0),
                alpha=0.75,
                markersize=5.5,
                **look,
            )
        top = np.full((~inside).sum(), high)
        axes.plot(points.x[~inside], top, "^", color=stand_in(0), alpha=0.75, markersize=5, clip_on=False)
        whole = np.where(points.is_whole, points.value, np.inf)
        if best_so_far and np.isfinite(whole).any():
            best = np.minimum.accumulate(whole)
            known = np.isfinite(best)
            axes.step(points.x[known], best[known], where="post", color=stand_in(1), linewidth=1.7)
        elif np.isfinite(whole).any():
            axes.plot(points.x[whole.argmin()], whole.min(), "o", color=stand_in(1), markersize=8)
        axis.dress(axes, "x", max(3, int(width / 80)))
        axes.yaxis.set_major_locator(MaxNLocator(max(3, int(height / 50)), steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.6g}'):g}"))
        axes.set_ylabel(y_label, color=INK)
        dress(axes, "y")

    return draw(paint, name=name, description=description, width=width, height=height)


def _limits(points: Points) -> tuple[float, float]:
    """Return limits in which the better trials are told apart."""
    good = points.value[points.is_whole] if points.is_whole.any() else points.value
    low, high = points.value.min(), max(points.value.max(), good.max())
    enough = low + 2 * (np.quantile(good, 0.75) - low)
    high = min(high, enough) if enough > low else high
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def surface(
    points: Points,
    y: np.ndarray,
    x_axis: Axis,
    y_axis: Axis,
    *,
    name: str,
    description: str,
    width: float = 876,
    height: float = 420,
) -> str | None:
    """Return the trials over two fields, on bands of what trials near each place have reached; None: fewer than four.

    The surface is the mean of the trials' ranks under a Gaussian kernel (Nadaraya 1964): the order of trials is what a
    search goes by, and one that diverged must not bleach the rest. It is left out where no trial is near, and between
    choices.

    Args:
      points: the trials and where they are across.
      y: where they are up, of the same length.
    """
    if points.value.size < 4:
        return None
    rank = np.argsort(np.argsort(points.value)) / (points.value.size - 1)

    def paint(axes: Any) -> None:
        if not (x_axis.choices or y_axis.choices):
            _paint_surface(axes, points.x, y, rank, x_axis, y_axis)
        for whole, look in (
            (True, {"markeredgewidth": 0}),
            (False, {"markerfacecolor": "none", "markeredgewidth": 1.1}),
        ):
            chosen = points.is_whole == whole
            axes.plot(points.x[chosen], y[chosen], "o", color=INK, alpha=0.65, markersize=5, **look)
        if points.is_whole.any():
            best = np.where(points.is_whole, points.value, np.inf).argmin()
            axes.plot(points.x[best], y[best], "o", color=stand_in(1), markersize=9)
        x_axis.dress(axes, "x", max(3, int(width / 80)))
        y_axis.dress(axes, "y", max(3, int(height / 50)))
        dress(axes, None)

    return draw(paint, name=name, description=description, width=width, height=height)


def _paint_surface(axes: Any, x: np.ndarray, y: np.ndarray, rank: np.ndarray, x_axis: Axis, y_axis: Axis) -> None:
    place = np.linspace(0, 1, _GRID)
    across = (place[:, None] - x_axis.unit(x)) ** 2  # [grid, trials]
    up = (place[:, None] - y_axis.unit(y)) ** 2
    weight = np.exp(-(up[:, None, :] + across[None, :, :]) / (2 * _REACH**2))  # [grid up, grid across, trials]
    total = weight.sum(-1)
    mean = np.where(total > 0.1, (weight * rank).sum(-1) / total, np.nan)

    def values(axis: Axis) -> np.ndarray:
        if axis.log:
            return axis.low * (axis.high / axis.low) ** place
        return axis.low + (axis.high - axis.low) * place

    levels = np.linspace(0, 1, _BANDS + 1)
    for band in range(_BANDS):  # one at a time: the colour is the page's, the strength ours
        strength = 0.05 + 0.5 * (1 - band / (_BANDS - 1))
        axes.contourf(
            values(x_axis),
            values(y_axis),
            np.ma.masked_invalid(mean),
            levels=levels[band : band + 2],
            colors=[stand_in(0)],
            alpha=strength,
        )
