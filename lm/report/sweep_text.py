"""What a sweep says, in rows: the table for a terminal, Markdown, CSV and JSON."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from lm.report.sweep_words import (
    Digits,
    judge_sweep,
    method,
    p_text,
    percent,
    spread_notes,
    unit_of,
    verdict_lines,
)
from lm.sweep.results import Run, Sweep
from lm.sweep.statistics import Difference, Judgement
from lm.train.console import compact, duration, printable


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of the table; the figures are medians over its finished runs, NaN where not known."""

    name: str
    is_baseline: bool
    runs: tuple[Run, ...]
    mean: float  # of the final metric
    difference: Difference | None

    @property
    def done(self) -> int:
        return sum(run.status == "done" for run in self.runs)

    def median(self, figure: str) -> float:
        known = [run.number(figure) for run in self.runs if run.status == "done"]
        known = [value for value in known if math.isfinite(value)]
        return statistics.median(known) if known else math.nan


def rows_of(sweep: Sweep, judgement: Judgement) -> list[Row]:
    """Return a row for each variant, the best first, those without a value last."""
    values = sweep.values()
    rows = [
        Row(
            name=variant.name,
            is_baseline=variant.name == sweep.baseline,
            runs=tuple(sweep.runs_of(variant.name)),
            mean=statistics.fmean(values[variant.name].values()) if values[variant.name] else math.nan,
            difference=judgement.of(variant.name),
        )
        for variant in sweep.variants
    ]
    return sorted(rows, key=lambda row: math.inf if math.isnan(row.mean) else row.mean)


HEADER = ("variant", "runs", "mean", "difference", "%", "interval", "p", "verdict")


def table_cells(sweep: Sweep, judgement: Judgement) -> list[list[str]]:
    """Return the rows of the table of verdicts, under `HEADER`."""
    digits, out = Digits(judgement), []
    for row in rows_of(sweep, judgement):
        cells = [row.name, f"{row.done}/{len(row.runs)}", digits.value(row.mean)]
        difference = row.difference
        if difference is None:
            out.append([*cells, *["-"] * 4, "baseline"])
            continue
        p = "-" if math.isnan(difference.p) else p_text(difference.p).removeprefix("p ").removeprefix("= ")
        out.append(
            [
                *cells,
                digits.difference(difference.mean, sign=True),
                percent(difference.percent, sign=True),
                digits.interval(difference.low, difference.high),
                p,
                (difference.verdict or "no verdict").removesuffix(" seen"),
            ]
        )
    return out


COST_HEADER = ("variant", "parameters", "tokens", "FLOPs", "tokens/s", "MFU", "peak memory", "wall time")


def cost_cells(sweep: Sweep, judgement: Judgement) -> list[list[str]]:
    """Return what a run of each variant took, medians, under `COST_HEADER`; the order is that of `table_cells`."""

    def known(value: float, form: Callable[[float], str]) -> str:
        return form(value) if math.isfinite(value) else "-"

    return [
        [
            row.name,
            known(row.median("num_parameters"), compact),
            known(row.median("tokens"), compact),
            known(row.median("flops"), "{:.2e}".format),
            known(row.median("tokens_per_second"), compact),
            known(row.median("mfu"), "{:.1%}".format),
            known(row.median("peak_memory_bytes"), lambda size: f"{size / 2**30:.2f} GiB"),
            known(row.median("seconds"), duration),
        ]
        for row in rows_of(sweep, judgement)
    ]


def terminal_table(sweep: Sweep, judgement: Judgement | None = None) -> str:
    """Return the table of verdicts in columns of plain text."""
    judgement = judgement or judge_sweep(sweep)
    table = [list(HEADER), *table_cells(sweep, judgement)]
    table = [[_cut(printable(row[0]), 44), *row[1:]] for row in table]
    table[0][2] = unit_of(sweep)
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    left = {0, len(HEADER) - 1}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def markdown(sweep: Sweep, judgement: Judgement) -> str:
    """Return verdict, tables and failures as Markdown."""

    def cell(text: str) -> str:
        return printable(text).replace("|", "\\|").replace("\n", " ")

    def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
        rule = [":--" if name in ("variant", "verdict", "failure") else "--:" for name in header]
        return [f"| {' | '.join(map(cell, row))} |" for row in [header, rule, *cells]]

    header = [unit_of(sweep) if name == "mean" else name for name in HEADER]
    lines = [f"# {cell(sweep.name)}", "", cell(sweep.description), ""]
    lines += [f"- {cell(line)}" for _, line in verdict_lines(sweep, judgement)]
    lines += [f"- {cell(line)}" for line in spread_notes(sweep, judgement)]
    lines += ["", *table(header, table_cells(sweep, judgement)), "", *table(COST_HEADER, cost_cells(sweep, judgement))]
    failures = [[run.variant, str(run.seed), run.failure] for run in sweep.runs if run.failure]
    if failures:
        lines += ["", *table(("variant", "seed", "failure"), failures)]
    return "\n".join([*lines, "", method(sweep, judgement), ""])


def csv_table(sweep: Sweep, judgement: Judgement) -> str:
    """Return one line per variant with every figure at full precision; empty where not known."""
    fields = ("num_parameters", "tokens", "flops", "tokens_per_second", "mfu", "peak_memory_bytes", "seconds")
    differences = ("mean", "percent", "low", "high", "p")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["variant", "verdict", "done", "failed", "pending", sweep.metric, "seeds_in_common"]
    header += ["difference", "percent", "low", "high", "p", *fields, *(f"seed_{seed}" for seed in sweep.seeds)]
    writer.writerow(header)
    values = sweep.values()
    for row in rows_of(sweep, judgement):
        counts = [sum(run.status == status for run in row.runs) for status in ("done", "failed", "pending")]
        d = row.difference
        verdict = "baseline" if d is None else d.verdict or "no verdict"
        compared = [len(d.seeds), *(_plain(getattr(d, name)) for name in differences)] if d else [""] * 6
        figures = [_plain(row.median(name)) for name in fields]
        per_seed = [_plain(values[row.name].get(seed, math.nan)) for seed in sweep.seeds]
        writer.writerow([row.name, verdict, *counts, _plain(row.mean), *compared, *figures, *per_seed])
    return out.getvalue()


def _plain(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def result_object(sweep: Sweep, judgement: Judgement) -> dict[str, Any]:
    """Return all that the report says as one object for JSON."""
    rows = []
    for row in rows_of(sweep, judgement):
        compared = dataclasses.asdict(row.difference) if row.difference else {}
        compared.pop("variant", None)
        compared["difference"] = compared.pop("mean", None)
        rows.append({"variant": row.name, "mean": row.mean, "done": row.done, "planned": len(row.runs)} | compared)
    return {
        "name": sweep.name,
        "metric": sweep.metric,
        "match": sweep.match,
        "baseline": sweep.baseline,
        "runs": {status: sweep.count(status) for status in ("done", "failed", "pending")},
        "residual_sd": judgement.residual_sd,
        "seed_sd": judgement.seed_sd,
        "degrees_of_freedom": judgement.degrees_of_freedom,
        "num_compared": judgement.num_compared,
        "unsteady": list(judgement.unsteady),
        "smallest": judgement.smallest,
        "variants": rows,
        "verdict": [line for _, line in verdict_lines(sweep, judgement)],
    }
