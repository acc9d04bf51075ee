"""The plot of a scaling law: loss over parameters, loss over tokens, and how far each run lies from the law."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.report.plots import SERIES_COLORS
from lm.storage import write_atomic
from lm.train.console import compact


def draw(
    runs: Sequence[Mapping[str, Any]],
    law: Callable[[float, float], float],
    predictions: Sequence[Mapping[str, Any]],
    path: str,
    *,
    title: str,
    metric: str,
) -> None:
    """Write the plot as PNG or SVG, by the name's end.

    Args:
      runs: what the law was fitted to: `parameters`, `tokens`, `loss`.
      law: the loss of (parameters, tokens).
      predictions: `parameters`, `tokens`, `predicted`, `low`, `high`, and `measured` (None where not known).
      path: where to.
      title: the law.
      metric: the loss's unit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    everything = [*runs, *predictions]
    for axes, over, per in ((left, "parameters", "tokens"), (middle, "tokens", "parameters")):
        x = np.geomspace(min(row[over] for row in everything) / 1.15, max(row[over] for row in everything) * 1.15, 200)
        levels = _levels([row[per] for row in everything])
        for number, level in enumerate(levels):
            color = SERIES_COLORS[number % len(SERIES_COLORS)]
            y = [law(value, level) if over == "parameters" else law(level, value) for value in x]
            own = [row for row in runs if _nearest(levels, row[per]) == number]
            is_predicted = not own
            axes.plot(x, y, color=color, linewidth=1.2, linestyle="--" if is_predicted else "-", label=compact(level))
            axes.plot([row[over] for row in own], [row["loss"] for row in own], "o", color=color, markersize=4)
            for row in predictions:
                if _nearest(levels, row[per]) == number:
                    _mark(axes, row[over], row, color)
        _count_ticks(axes)
        _loss_ticks(axes)
        axes.set_xlabel({"parameters": "parameters N", "tokens": "training tokens D"}[over])
        axes.set_title(f"{metric} over {over}", fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8, title=per, title_fontsize=8, loc="lower left")
    right.axhline(0, color="#888888", linewidth=0.8)
    right.plot(
        [row["parameters"] for row in runs],
        [100 * (row["loss"] / law(row["parameters"], row["tokens"]) - 1) for row in runs],
        "o",
        color=SERIES_COLORS[0],
        markersize=4,
        label="fitted",
    )
    for row in predictions:
        relative = {
            name: row[name] and 100 * (row[name] / row["predicted"] - 1) for name in ("low", "high", "measured")
        }
        _mark(
            right, row["parameters"], {"predicted": 0, **relative}, SERIES_COLORS[1], label="predicted, 95 % interval"
        )
    _count_ticks(right)
    right.set_xlabel("parameters N")
    right.set_title("% from the law", fontsize=10, loc="left")
    handles = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    right.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, loc="upper left")
    for axes in (left, middle, right):
        axes.grid(axis="y", alpha=0.2)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(y=0.12 if axes is not right else 0.35)  # room for its legend
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    out = io.BytesIO()
    metadata = {"Date": None} if path.endswith(".svg") else None
    figure.savefig(out, format=path.rpartition(".")[2], dpi=150, metadata=metadata)
    write_atomic(path, out.getvalue())


def _mark(axes, x: float, row: Mapping[str, Any], color: str, label: str | None = None) -> None:
    """Draw a prediction's interval, and what was measured as a star."""
    below, above = row["predicted"] - row["low"], row["high"] - row["predicted"]
    axes.errorbar([x], [row["predicted"]], [[below], [above]], color=color, capsize=4, marker="_", label=label)
    if row["measured"] is not None:
        measured = "held back, measured" if label else None
        axes.plot([x], [row["measured"]], "*", color=color, markersize=11, markeredgecolor="white", label=measured)


def _levels(values: Sequence[float]) -> list[float]:
    """Return the different values; of many, as many as there are colours, spread over them."""
    known = sorted(set(values))
    if len(known) <= len(SERIES_COLORS):
        return known
    return [known[round(i)] for i in np.linspace(0, len(known) - 1, len(SERIES_COLORS))]


def _nearest(levels: Sequence[float], value: float) -> int:
    return int(np.argmin(np.abs(np.log(levels) - np.log(value))))


def _count_ticks(axes) -> None:
    """Write counts as 100k, 1.00M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=9)


def _loss_ticks(axes) -> None:
    """Write losses as numbers, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_locator(NullLocator())
