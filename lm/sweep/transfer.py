"""Transfer of the learning rate: by how much does the best one move when the model gets wider?

Under muP the rate that is best at a small width is best at a large one (Yang et al. 2022, figure 1); under standard
parametrization it falls about as 1 / width. Rates on a grid tell it to within a grid step.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from lm.errors import UsageError
from lm.sweep.results import Sweep

WIDTH, RATE = "model.d_model", "optimizer.learning_rate"


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Final losses over a grid of widths and learning rates, under one parametrization."""

    label: str
    losses: Mapping[int, Mapping[float, float | None]]  # width -> rate -> loss, the mean over seeds; None: diverged
    metric: str = "loss"

    @classmethod
    def of_runs(cls, label: str, runs: Iterable[tuple[int, float, float | None]], metric: str = "loss") -> "Transfer":
        """Return the transfer of (width, rate, loss) of single runs; a rate at which one seed diverged has diverged.

        Raises:
          UsageError: fewer than two widths, or a width at which nothing was finite.
        """
        found: dict[int, dict[float, list[float | None]]] = {}
        for width, rate, loss in runs:
            found.setdefault(width, {}).setdefault(rate, []).append(loss)
        if len(found) < 2:
            raise UsageError(f"{label}: {len(found)} widths; the transfer of a learning rate needs two or more.")
        mean = lambda seeds: None if any(not _is_finite(loss) for loss in seeds) else math.fsum(seeds) / len(seeds)  # noqa: E731
        losses = {
            width: {rate: mean(seeds) for rate, seeds in sorted(of_width.items())}
            for width, of_width in sorted(found.items())
        }
        for width, of_width in losses.items():
            if all(loss is None for loss in of_width.values()):
                raise UsageError(f"{label}: no run of width {width} has a finite {metric}.")
        return cls(label, losses, metric)

    @property
    def widths(self) -> list[int]:
        return list(self.losses)

    @property
    def rates(self) -> list[float]:
        """All rates of the grid, increasing."""
        return sorted({rate for of_width in self.losses.values() for rate in of_width})

    def best(self, width: int) -> float:
        """Return the rate of the lowest loss at a width."""
        finite = {rate: loss for rate, loss in self.losses[width].items() if loss is not None}
        return min(finite, key=finite.get)

    def vertex(self, width: int) -> float:
        """Return the rate at the vertex of the parabola through the best point and its neighbours, in log rate.

        A finer figure than the grid's; the best rate itself where a neighbour is missing or diverged.
        """
        known = [(math.log2(rate), loss) for rate, loss in self.losses[width].items() if loss is not None]
        i = min(range(len(known)), key=lambda i: known[i][1])
        if not 0 < i < len(known) - 1:
            return 2 ** known[i][0]
        (x0, y0), (x1, y1), (x2, y2) = known[i - 1 : i + 2]
        left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
        if left == right:  # three equal losses
            return 2**x1
        return 2 ** (x1 - ((x1 - x0) * left - (x1 - x2) * right) / (2 * (left - right)))

    @property
    def moved(self) -> int:
        """Grid steps between the lowest and the highest of the widths' best rates."""
        places = [self.rates.index(self.best(width)) for width in self.widths]
        return max(places) - min(places)

    @property
    def at_the_edge(self) -> list[int]:
        """Widths whose best rate is the grid's lowest or highest: the real one may be beyond it."""
        return [width for width in self.widths if self.best(width) in (self.rates[0], self.rates[-1])]

    @property
    def penalty(self) -> float:
        """What the smallest width's best rate costs in loss at the largest: infinite if it diverges, NaN if not run."""
        first, last = self.widths[0], self.widths[-1]
        there = self.losses[last].get(self.best(first), math.nan)
        return math.inf if there is None else there - self.losses[last][self.best(last)]

    @property
    def summary(self) -> str:
        """Return the verdict in a line."""
        steps = "1 grid step" if self.moved == 1 else f"{self.moved} grid steps"
        if self.at_the_edge:
            steps = f"at least {steps}"
        return f"{self.label}: the best rate moves by {steps} from width {self.widths[0]} to {self.widths[-1]}"

    def table(self) -> str:
        """Return losses by rate and width as text, each width's best marked."""
        rows = [["rate", *map(str, self.widths)]]
        for rate in self.rates:
            row = [f"{rate:.3g}"]
            for width in self.widths:
                loss = self.losses[width].get(rate, math.nan)
                text = "diverged" if loss is None else "-" if math.isnan(loss) else f"{loss:.4f}"
                row.append(text + ("*" if rate == self.best(width) else " "))
            rows.append(row)
        rows.append(["vertex", *(f"{self.vertex(width):.3g} " for width in self.widths)])
        return "\n".join("".join(f"{cell:>10}" for cell in row) for row in rows)


def transfers_of(sweep: Sweep) -> list[Transfer]:
    """Return the transfers in a sweep over `model.d_model` and `optimizer.learning_rate`: muP's, standard's.

    Empty if it is no sweep over both, or as long as it has results of one width only. Runs that are still pending are
    left out, failed ones have diverged. The loss is the sweep's own metric at the last step. What follows the width
    (heads, d_ff) may vary with it, and `model.mup_base_width` may be set in some runs: those are a transfer of their own.

    Raises:
      UsageError: nothing at one of the widths is finite.
    """
    if not {WIDTH, RATE} <= {name for variant in sweep.variants for name in variant.overrides}:
        return []
    runs: dict[str, list[tuple[int, float, float | None]]] = {"muP": [], "standard": []}
    for run in (run for run in sweep.runs if run.result.get("config")):
        model, rate = run.result["config"]["model"], run.result["config"]["optimizer"]["learning_rate"]
        final = run.final(sweep.metric) if run.status == "done" else None
        runs["standard" if model["mup_base_width"] is None else "muP"].append((model["d_model"], rate, final))
    return [
        Transfer.of_runs(label, of_label, sweep.metric)
        for label, of_label in runs.items()
        if len({width for width, *_ in of_label}) > 1
    ]


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
