"""The plots of `lm coord-check` and of the best learning rates over widths."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from lm.report.plots import SERIES_COLORS
from lm.storage import write_atomic

_KINDS = {"rms": "RMS", "change": "RMS of the change"}


def draw_growth(growths: Mapping[str, Any], path: str, *, title: str) -> None:
    """Write sizes of activations over widths as a PNG: a column per activation, a colour per parametrization.

    Above the sizes, below those of the changes against initialization; a line per layer, the later the darker.

    Args:
      growths: parametrization -> `lm.sweep.coord_check.Growth`.
      path: where to.
      title: what was measured.
    """
    first = next(iter(growths.values()))
    columns: dict[str, list[str]] = {}  # what it is, in any layer -> the activations
    for name in first.rms:
        columns.setdefault(name.rpartition("/")[2], []).append(name)
    figure, panels = _figure((2.3 * len(columns), 5.6), (len(_KINDS), len(columns)))
    for row, (kind, kind_label) in zip(panels, _KINDS.items(), strict=True):
        for axes, (column, names) in zip(row, columns.items(), strict=True):
            for number, (label, growth) in enumerate(growths.items()):
                for layer, name in enumerate(names):
                    sizes = growth.sizes(kind, name)
                    if not sizes.any():
                        continue
                    axes.plot(
                        growth.widths,
                        sizes,
                        color=SERIES_COLORS[number],
                        alpha=0.4 + 0.6 * (layer + 1) / len(names),
                        marker="o",
                        markersize=3,
                        label=label if layer == len(names) - 1 else None,
                    )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(first.widths, [str(width) for width in first.widths])
            axes.minorticks_off()
            _at_least_an_octave(axes)
            if kind == "rms":
                axes.set_title(column.replace("_", " "), fontsize=10, loc="left")
            else:
                axes.set_xlabel("width", fontsize=9)
            if axes is row[0]:
                axes.set_ylabel(kind_label, fontsize=9)
    _finish(figure, panels[0][0], path, title)


def draw_transfer(transfers: Sequence[Any], path: str, *, title: str) -> None:
    """Write loss over learning rate as a PNG: a panel per parametrization, a curve per width, its best rate marked.

    Args:
      transfers: of `lm.sweep.transfer.Transfer`.
      path: where to.
      title: what was trained.
    """
    figure, panels = _figure((4.2 * len(transfers), 3.8), (1, len(transfers)), sharey=True)
    for axes, transfer in zip(panels[0], transfers, strict=True):
        for number, width in enumerate(transfer.widths):
            color, losses = SERIES_COLORS[number % len(SERIES_COLORS)], transfer.losses[width]
            rates = [rate for rate in transfer.rates if losses.get(rate) is not None]
            axes.plot(rates, [losses[rate] for rate in rates], color=color, marker="o", markersize=3, label=str(width))
            best = transfer.best(width)
            axes.plot([best], [losses[best]], color=color, marker="*", markersize=12)
        axes.set_xscale("log", base=10)
        axes.set_title(transfer.summary.replace(" from ", "\nfrom "), fontsize=9, loc="left")
        axes.set_xlabel("learning rate", fontsize=9)
    panels[0][0].set_ylabel(transfers[0].metric, fontsize=9)
    # A diverged run would leave no height for the rest.
    finite = [loss for t in transfers for losses in t.losses.values() for loss in losses.values() if loss is not None]
    low = min(finite)
    panels[0][0].set_ylim(low - 0.1, min(max(finite) + 0.1, low + 2.0))
    _finish(figure, panels[0][0], path, title)


def _figure(size: tuple[float, float], grid: tuple[int, int], **options: Any):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(*grid, squeeze=False, **options)
    for axes in panels.flat:
        axes.grid(axis="y", alpha=0.2)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, panels


def _at_least_an_octave(axes: Any) -> None:
    """Widen a narrow axis, on which noise would look like growth."""
    low, high = axes.get_ylim()
    if low > 0 and high / low < 4:
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 2, middle * 2)


def _finish(figure: Any, legend_at: Any, path: str, title: str) -> None:
    legend_at.legend(frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    write_atomic(path, out.getvalue())
