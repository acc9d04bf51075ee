"""The plot of `lm find-lr`: the loss over the learning rate, what each rule suggests, and the short search beside it."""

import io
import math
from collections.abc import Mapping
from typing import Any

from lm.report.plots import SERIES_COLORS
from lm.storage import write_atomic

ENDS = {
    "diverged": "stopped where the loss diverged",
    "not_finite": "stopped where the loss was no number",
    "high": "ran to the highest rate",
}
_CHOSEN = "#c02020"


def draw(result: Mapping[str, Any], path: str, *, title: str) -> None:
    """Write the plot as PNG or SVG, by the name's end.

    Args:
      result: what `lm find-lr` writes as JSON.
      path: where to.
      title: what was trained.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ramp, search = result["range_test"], result["search"]
    figure = Figure(figsize=(11, 4.6) if search else (7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if search else 1, squeeze=False, width_ratios=(3, 2) if search else None)[0]
    _draw_ramp(panels[0], result, ramp)
    if search:
        _draw_search(panels[1], search, result["suggestion"] if result["rule"] == "search" else None)
    for axes in panels:
        axes.set_xlabel("learning rate")
        axes.grid(axis="y", alpha=0.2)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    out = io.BytesIO()
    is_svg = path.endswith(".svg")
    figure.savefig(out, format=path.rpartition(".")[2], dpi=150, metadata={"Date": None} if is_svg else None)
    write_atomic(path, out.getvalue())


def _draw_ramp(axes, result: Mapping[str, Any], ramp: Mapping[str, Any]) -> None:
    axes.set_xscale("log")
    points = ramp["points"]
    rates, smoothed = [p["learning_rate"] for p in points], [p["smoothed"] for p in points]
    axes.plot(rates, [p["loss"] for p in points], color=SERIES_COLORS[0], alpha=0.35, linewidth=0.9, label="loss")
    axes.plot(rates, smoothed, color=SERIES_COLORS[0], linewidth=1.8, label="smoothed")
    first, last = ramp["trimmed"]
    for low, high in ((rates[0], rates[first]), (rates[last - 1], rates[-1])):
        axes.axvspan(low, high, color="#888888", alpha=0.12, linewidth=0)
    for number, (rule, rate) in enumerate(result["suggestions"].items(), 1):
        is_chosen = rule == result["rule"]
        style = (
            {"color": _CHOSEN, "linewidth": 1.6} if is_chosen else {"color": SERIES_COLORS[number], "linestyle": "--"}
        )
        axes.axvline(
            rate, label=f"{rule}: {rate:.2g}" + (", suggested" if is_chosen else ""), **{"linewidth": 1} | style
        )
    # What diverges leaves at the top; the fall is what one reads.
    low, begin = min(point["loss"] for point in points), points[0]["loss"]
    axes.set_ylim(low - 0.05 * (begin - low or 1), begin + 0.15 * (begin - low or 1))
    axes.set_ylabel("training loss, nats per token")
    axes.set_title(f"range test, {len(points)} steps, {ENDS[ramp['ended']]}; grey: trimmed", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="best")


def _draw_search(axes, search: Mapping[str, Any], chosen: float | None) -> None:
    axes.set_xscale("log")
    points = [p for p in search["points"] if p["loss"] is not None and math.isfinite(p["loss"])]
    rates = [p["learning_rate"] for p in points]
    axes.plot(rates, [p["loss"] for p in points], color=SERIES_COLORS[0], marker="o", markersize=5, linewidth=1.2)
    if chosen is not None:
        axes.axvline(chosen, color=_CHOSEN, linewidth=1.6)
    axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
    axes.minorticks_off()
    title = f"{len(search['points'])} short runs of {search['num_steps']} steps, loss of the last quarter;\n"
    title += "suggested: the lowest rate within 1 % of the best"
    axes.set_title(title, fontsize=9, loc="left")
