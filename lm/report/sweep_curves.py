"""The curves of a sweep: the metric over tokens, FLOPs and time, and the paired differences over the training."""

import math
from collections.abc import Sequence

import numpy as np

from lm.report import page
from lm.report.plots import Series, line_plot, smooth
from lm.report.sweep_words import counted, unit_of
from lm.sweep.results import Curve, Sweep, read_curves

MOST_COLORED = 6  # lines of their own in the curves; the others are faint
POINTS = 200  # of a curve
SKIPPED = 0.25  # of a run, in the curves of differences: at first they are large and say little
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def curves_section(sweep: Sweep, ranked: Sequence[str]) -> page.Markup | None:
    """Return the section, or None if no finished run left its metrics.

    Args:
      sweep: its runs' metrics are read.
      ranked: the variants, the best first.
    """
    curves = read_curves(sweep)
    if not curves:
        return None
    is_validation = all(curve.is_validation for curve in curves.values())
    names = [name for name in ranked if any(own == name for own, _ in curves)]
    colored = _colored(sweep, names)
    order = [name for name in names if name not in colored] + colored
    bands = {name: _band([curve for (own, _), curve in curves.items() if own == name]) for name in order}
    what = f"{'Validation' if is_validation else 'Training'} {unit_of(sweep)}"
    told = f"{what}, mean and range over the seeds. " + " ".join(
        f"{name} ends at {bands[name]['mean'][-1]:.4g}." for name in colored
    )

    def figure(axis: str, kind: str, **options) -> page.Markup | None:
        largest = max(float(np.nanmax(band[axis], initial=0)) for band in bands.values())
        scale, label = _axis(axis, largest)
        series = [
            Series(
                band[axis] / scale,
                band["mean"],
                name if name in colored else None,
                color=max(0, colored.index(name) - 1) if name in colored else 0,
                plain=name == sweep.baseline or name not in colored,
                faint=name not in colored,
                low=band["low"] if name in colored else None,
                high=band["high"] if name in colored else None,
            )
            for name, band in bands.items()
            if np.isfinite(band[axis]).all()
        ]
        svg = line_plot(series, name=f"curves-{axis}-{kind}", description=told, x_label=label, bulk=0.8, **options)
        return svg and page.figure(svg, f"{what} over {label}", kind)

    others = len(names) - len(colored)
    return page.section(
        "Curves",
        page.paragraph(
            (
                "Lines are means over the seeds, bands reach from the lowest to the highest."
                if len(sweep.seeds) > 1
                else ""
            )
            + (f" Faint: {counted(others, 'variant')} more." if others > 0 else "")
        ),
        figure("tokens", "wide", width=876, height=330),
        figure("tokens", "narrow"),
        *_difference_curves(sweep, curves, colored),
        page.grid(figure("flops", "", legend=False), figure("seconds", "", legend=False)),
    )


def _colored(sweep: Sweep, names: list[str]) -> list[str]:
    """Return the variants that have lines of their own: the baseline, then the best, and of many also the worst."""
    others = [name for name in names if name != sweep.baseline]
    if len(others) > MOST_COLORED:
        others = [*others[: MOST_COLORED - 1], others[-1]]
    return [sweep.baseline, *others] if sweep.baseline in names else others


def _band(curves: Sequence[Curve]) -> dict[str, np.ndarray]:
    """Return mean, lowest and highest of some runs at the same steps, and the means of what these steps took."""
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    longest = max(curves, key=lambda curve: len(curve.steps)).steps
    steps = longest[(longest >= first) & (longest <= last)]
    if len(steps) > POINTS or not len(steps):
        steps = np.linspace(first, last, POINTS)
    each = np.stack([np.interp(steps, curve.steps, _smoothed(curve)) for curve in curves])
    axes = {
        axis: np.mean([np.interp(steps, curve.steps, curve.axes[axis]) for curve in curves], axis=0)
        for axis in curves[0].axes
    }
    return {"steps": steps, "mean": each.mean(0), "low": each.min(0), "high": each.max(0), **axes}


def _smoothed(curve: Curve) -> np.ndarray:
    return curve.metric if curve.is_validation else smooth(curve.metric)


def _difference_curves(sweep: Sweep, curves: dict[tuple[str, int], Curve], colored: list[str]) -> list[page.Markup]:
    """Return how the paired differences to the baseline went over the training."""
    series, longest = [], 0.0
    for number, name in enumerate(colored):
        pairs = [
            (curve, curves[sweep.baseline, seed])
            for (own, seed), curve in curves.items()
            if own == name and (sweep.baseline, seed) in curves
        ]
        if name == sweep.baseline or not pairs:
            continue
        band = _band([curve for curve, _ in pairs])
        kept = band["steps"] >= SKIPPED * band["steps"][-1]
        each = [
            np.interp(band["steps"], curve.steps, _smoothed(curve)) - np.interp(band["steps"], of.steps, _smoothed(of))
            for curve, of in pairs
        ]
        mean, low, high = (np.asarray(of(each, axis=0))[kept] for of in (np.mean, np.min, np.max))
        series.append(Series(band["tokens"][kept], mean, name, color=number - 1, low=low, high=high))
        longest = max(longest, float(band["tokens"][-1]))
    scale, label = _axis("tokens", longest)
    series = [
        Series(np.asarray(item.x) / scale, item.y, item.label, color=item.color, low=item.low, high=item.high)
        for item in series
    ]
    told = f"Difference to {sweep.baseline} over {label}. " + " ".join(
        f"{item.label} ends at {item.y[-1]:+.3g}." for item in series
    )
    caption = (
        f"Difference to {sweep.baseline}, paired by seed, over {label} (colours as above, without the first quarter)"
    )
    return [
        page.figure(svg, caption, kind)
        for kind, options in (("wide", {"width": 876, "height": 250}), ("narrow", {}))
        if (
            svg := line_plot(
                series, name=f"paired-{kind}", description=told, x_label=label, zero_line=True, legend=False, **options
            )
        )
    ]


def _axis(axis: str, largest: float) -> tuple[float, str]:
    """Return the unit of an axis as (its size, the axis' label)."""
    if axis == "seconds":
        units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        return next((size, f"wall time, {name}") for size, name in units if largest >= 3 * size or size == 1)
    if axis == "tokens":
        return 1.0, "tokens"
    exponent = max(0, 3 * math.floor(math.log10(largest) / 3)) if largest > 0 else 0
    return 10.0**exponent, "training FLOPs" + (f", 10{str(exponent).translate(_RAISED)}" if exponent else "")
