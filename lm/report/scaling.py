"""The weak-scaling plot of `lm plan`: throughput per device and what waits for communication, assumptions beside it."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lm.report.plots import SERIES_COLORS
from lm.storage import write_atomic


def draw(rows: Sequence[Mapping[str, Any]], path: str, *, title: str, statements: Sequence[str]) -> None:
    """Write the plot as PNG or SVG, by the name's end.

    Args:
      rows: with `chips`, `curve`, `tokens_per_second_per_device` and `communication_share` (0 to 1).
      path: where to.
      title: what is scaled on what.
      statements: the assumptions, a line each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    for number, curve in enumerate(dict.fromkeys(row["curve"] for row in rows)):
        own = [row for row in rows if row["curve"] == curve]
        chips, color = [row["chips"] for row in own], SERIES_COLORS[number % len(SERIES_COLORS)]
        speeds = [row["tokens_per_second_per_device"] for row in own]
        shares = [100 * row["communication_share"] for row in own]
        left.plot(chips, speeds, color=color, marker="o", markersize=4, label=curve)
        middle.plot(chips, shares, color=color, marker="o", markersize=4, label=curve)
    for axes, name in ((left, "tokens/s per device"), (middle, "% of the step that waits for communication")):
        axes.set_xscale("log", base=2)
        ticks = sorted({row["chips"] for row in rows})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45)
        axes.set_xlabel("chips")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.grid(axis="y", alpha=0.2)
        axes.spines[["top", "right", "left"]].set_visible(False)
    left.legend(frameon=False, fontsize=9, loc="lower left")
    right.axis("off")
    text = "\n".join(textwrap.fill(line, 42, initial_indent="- ", subsequent_indent="  ") for line in statements)
    right.text(0, 1, "Predicted, not measured. Assumed:\n\n" + text, va="top", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    out = io.BytesIO()
    figure.savefig(
        out, format=path.rpartition(".")[2], dpi=150, metadata={"Date": None} if path.endswith(".svg") else None
    )
    write_atomic(path, out.getvalue())
