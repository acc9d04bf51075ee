"""The page about a sweep: the verdict first, then what it rests on; with Markdown and CSV beside it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.errors import UsageError
from lm.report import page
from lm.report import sweep_text as text
from lm.report import sweep_words as words
from lm.report.charts import Interval, heat_map, interval_chart
from lm.report.plots import Series, line_plot
from lm.report.sweep_curves import curves_section
from lm.storage import join, write_atomic
from lm.sweep.results import Sweep, flat, read_sweep
from lm.sweep.statistics import POWER, Judgement
from lm.sweep.transfer import transfers_of
from lm.train.console import duration

MOST_ROWS = 12  # of a table that is not folded, but for that of the verdicts


def write_sweep_report(folder: str, out: str | None = None) -> str:
    """Write `report.html`, `report.md` and `table.csv` into a sweep's folder; return the page's path.

    Args:
      folder: of a sweep, finished or not.
      out: where the page goes instead.

    Raises:
      UsageError: the folder holds no sweep.
      DamagedFileError: its plan, a result or a run's metrics cannot be read as what they are.
      LmError: a file cannot be read or written.
    """
    sweep = read_sweep(folder)
    judgement = words.judge_sweep(sweep)
    path = out or join(folder, "report.html")
    write_atomic(path, sweep_page(sweep, judgement))
    write_atomic(join(folder, "report.md"), text.markdown(sweep, judgement))
    write_atomic(join(folder, "table.csv"), text.csv_table(sweep, judgement))
    return path


def sweep_page(sweep: Sweep, judgement: Judgement) -> page.Markup:
    """Return the page; it reads the runs' metrics for the curves."""
    return page.page(
        sweep.name,
        _subtitle(sweep),
        page.paragraph(sweep.description) if sweep.description else None,
        *_notices(sweep),
        page.section(
            "Verdict", page.statements(words.verdict_lines(sweep, judgement)), *_differences(sweep, judgement)
        ),
        _table(sweep, judgement),
        _swept(sweep, judgement),
        _transfers(sweep),
        curves_section(sweep, [row.name for row in text.rows_of(sweep, judgement)]),
        _configs(sweep),
        _failures(sweep),
        _method(sweep, judgement),
    )


def _transfers(sweep: Sweep) -> page.Markup | None:
    """Return what a sweep over widths and learning rates says of the best rate; None: it is over something else."""
    heading = "Transfer of the learning rate"
    try:
        found = transfers_of(sweep)
    except UsageError as error:  # all runs of one width diverged
        return page.section(heading, page.paragraph(str(error)))
    pieces = [page.join([page.paragraph(f"{one.summary}."), page.verbatim(one.table())]) for one in found]
    return page.section(heading, *pieces) if pieces else None


def _subtitle(sweep: Sweep) -> str:
    parts = [f"{len(sweep.variants)} variants, {len(sweep.seeds)} seed{'s' * (len(sweep.seeds) != 1)}"]
    parts.append(f"baseline {sweep.baseline}")
    if sweep.config_file:
        parts.append(sweep.config_file)
    seconds = sum(run.number("seconds") for run in sweep.runs if math.isfinite(run.number("seconds")))
    return " · ".join([*parts, f"{sweep.count('done'):,} of {len(sweep.runs):,} runs done in {duration(seconds)}"])


def _notices(sweep: Sweep) -> list[page.Markup]:
    out = []
    if pending := sweep.count("pending"):
        out.append(f"This sweep is not finished: {pending:,} of {len(sweep.runs):,} runs are pending.")
    if failed := sweep.count("failed"):
        out.append(f"{failed:,} of {len(sweep.runs):,} runs failed; their reasons are below.")
    return [page.notice(line) for line in out]


def _differences(sweep: Sweep, judgement: Judgement) -> list[page.Markup]:
    """Return the chart of paired differences, for a wide and for a narrow page."""
    unit, digits = words.unit_of(sweep), words.Digits(judgement)
    ordered = sorted((d for d in judgement.differences if d.seeds), key=lambda d: d.mean)
    rows = [
        Interval(
            label=d.variant if len(d.variant) <= 36 else d.variant[:35] + "…",
            mean=d.mean,
            values=d.per_seed,
            low=d.low if math.isfinite(d.low) else None,
            high=d.high if math.isfinite(d.high) else None,
            kind=d.verdict if d.verdict in ("better", "worse") else "neither",
            remark=f"{words.percent(d.percent, sign=True)}{f' {d.verdict}' if d.verdict in ('better', 'worse') else ''}",
        )
        for d in ordered
    ]
    told = f"Differences to {sweep.baseline} in {unit}. " + " ".join(
        f"{d.variant} {digits.difference(d.mean, sign=True)} ({digits.interval(d.low, d.high)})." for d in ordered
    )
    caption = f"Difference to {sweep.baseline} in {unit}"
    if judgement.num_compared:
        caption += f": mean, {words.CONFIDENCE} interval, a stroke for each seed"
    out = []
    for kind, options in (("wide", {"width": 876}), ("narrow", {"width": 420, "labels_above": True})):
        svg = interval_chart(
            rows, name=f"differences-{kind}", description=told, x_label="← better · worse →", **options
        )
        if svg:
            out.append(page.figure(svg, caption, kind))
    return out


def _table(sweep: Sweep, judgement: Judgement) -> page.Markup:
    header = [words.unit_of(sweep) if name == "mean" else name for name in text.HEADER]
    rows = [[*cells[:-1], _marked(cells[-1])] for cells in text.table_cells(sweep, judgement)]
    cost_numbers = range(1, len(text.COST_HEADER))
    cost = page.table(text.COST_HEADER, text.cost_cells(sweep, judgement), numeric=cost_numbers, kind="tight")
    what = "What a run took (medians)"
    return page.section(
        "Variants",
        page.table(header, rows, numeric=range(1, len(header) - 1), kind="tight"),
        page.fold(f"Values of each seed ({len(sweep.seeds)})", _per_seed(sweep, judgement)),
        page.fold(what, cost) if len(rows) > MOST_ROWS else page.join([page.heading(what), cost]),
    )


def _marked(verdict: str) -> page.Markup:
    if verdict not in ("better", "worse"):
        return page.escape(verdict)
    return page.Markup(f'<span class="{verdict}"><b>{verdict}</b></span>')


def _per_seed(sweep: Sweep, judgement: Judgement) -> page.Markup:
    values, digits = sweep.values(), words.Digits(judgement)
    status = {(run.variant, run.seed): run.status for run in sweep.runs}

    def cell(variant: str, seed: int) -> str:
        if seed in values[variant]:
            return digits.value(values[variant][seed])
        kept = status.get((variant, seed), "-")
        return "no value" if kept == "done" else kept

    rows = [[row.name, *(cell(row.name, seed) for seed in sweep.seeds)] for row in text.rows_of(sweep, judgement)]
    return page.table(
        ["variant", *(f"seed {seed}" for seed in sweep.seeds)], rows, numeric=range(1, 1 + len(sweep.seeds))
    )


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _swept(sweep: Sweep, judgement: Judgement) -> page.Markup | None:
    """Return the metric against the swept value if one numeric field was swept, a heat map if two fields were."""
    settings = sweep.settings()
    if len(settings) == 1:
        ((field, of_variant),) = settings.items()
        if len(set(map(repr, of_variant.values()))) >= 3 and _is_numeric(list(of_variant.values())):
            return _against(sweep, field, of_variant)
    if len(settings) == 2 and len(sweep.variants) >= 4:
        return _grid(sweep, judgement, settings)
    return None


def _against(sweep: Sweep, field: str, of_variant: dict[str, Any]) -> page.Markup | None:
    values, unit = sweep.values(), words.unit_of(sweep)
    points = sorted((float(of_variant[name]), list(own.values())) for name, own in values.items() if own)
    if not points:
        return None
    x = [place for place, _ in points]
    log_x = min(x) > 0 and max(x) > 10 * min(x)
    line = Series(
        x,
        [float(np.mean(own)) for _, own in points],
        points=True,
        low=[min(own) for _, own in points],
        high=[max(own) for _, own in points],
    )
    best = min(points, key=lambda point: float(np.mean(point[1])))[0]
    told = f"{unit} against {field}, lowest at {best:g}."
    figures = [
        page.figure(svg, f"Final {unit} against {field}: mean and range over the seeds", kind)
        for kind, width in (("wide", 876), ("narrow", 420))
        if (
            svg := line_plot(
                [line],
                name=f"against-{kind}",
                description=told,
                x_label=field,
                width=width,
                height=300,
                log_x=log_x,
                x_ticks=x,
                bulk=0.85,
            )
        )
    ]
    return page.section(f"Against {field}", page.paragraph(f"The lowest mean is at {field} = {best:g}."), *figures)


def _grid(sweep: Sweep, judgement: Judgement, settings: dict[str, dict[str, Any]]) -> page.Markup | None:
    values, digits = sweep.values(), words.Digits(judgement)
    (row_field, of_row), (column_field, of_column) = settings.items()
    rows, columns = (_ordered(list(of.values())) for of in (of_row, of_column))
    if min(len(rows), len(columns)) < 2 or len(sweep.variants) < 0.6 * len(rows) * len(columns):
        return None  # two fields, but no grid
    grid = np.full((len(rows), len(columns)), np.nan)
    for name, own in values.items():
        if own:
            grid[rows.index(of_row[name]), columns.index(of_column[name])] = np.mean(list(own.values()))
    told = f"Final {words.unit_of(sweep)}, {row_field} down, {column_field} across."
    figures = [
        page.figure(svg, f"Final {words.unit_of(sweep)}, mean over the seeds; the lowest is framed", kind)
        for kind, width in (("wide", 876), ("narrow", 420))
        if (
            svg := heat_map(
                grid,
                [_value(row) for row in rows],
                [_value(column) for column in columns],
                name=f"grid-{kind}",
                description=told,
                x_label=column_field,
                y_label=row_field,
                form=f".{min(4, digits.decimals)}f",
                width=width,
            )
        )
    ]
    return page.section(f"{row_field} and {column_field}", *figures) if figures else None


def _ordered(values: list[Any]) -> list[Any]:
    distinct = [value for index, value in enumerate(values) if value not in values[:index]]
    return sorted(distinct) if _is_numeric(distinct) else distinct


def _value(value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _configs(sweep: Sweep) -> page.Markup | None:
    """Return the fields in which the variants differ from the baseline."""
    settings = sweep.settings()
    if not settings:
        return None
    if len(settings) <= 4:
        header = ["variant", *settings]
        rows = [[v.name, *(_value(of[v.name]) for of in settings.values())] for v in sweep.variants]
    else:
        header = ["variant", "field", "value", f"of {sweep.baseline}"]
        rows = [
            [variant.name, field, _value(of[variant.name]), _value(of[sweep.baseline])]
            for variant in sweep.variants
            for field, of in settings.items()
            if of[variant.name] != of[sweep.baseline]
        ]
    table = page.table(header, rows)
    same = page.paragraph(f"All other fields are those of {sweep.config_file or 'the base config'}.")
    whole = page.fold(
        "The base config", page.table(["field", "value"], [[k, _value(v)] for k, v in flat(sweep.base).items()])
    )
    return page.section(
        "What differs", page.fold(f"{len(rows)} rows", table) if len(rows) > MOST_ROWS else table, same, whole
    )


def _failures(sweep: Sweep) -> page.Markup | None:
    rows = [
        [run.variant, run.seed, "-" if math.isnan(run.number("steps")) else f"{run.number('steps'):,.0f}", run.failure]
        for run in sweep.runs
        if run.failure
    ]
    return page.section("Failures", page.table(["variant", "seed", "steps", "failure"], rows)) if rows else None


def _method(sweep: Sweep, judgement: Judgement) -> page.Markup:
    digits = words.Digits(judgement)
    facts = {"runs": ", ".join(f"{sweep.count(s):,} {s}" for s in ("done", "failed", "pending") if sweep.count(s))}
    if judgement.degrees_of_freedom:
        facts["noise of a run"] = (
            f"s = {judgement.residual_sd:.2g} {words.unit_of(sweep)}, {judgement.degrees_of_freedom} degrees of freedom"
        )
    if math.isfinite(judgement.seed_sd):
        facts["spread of the seeds"] = f"{judgement.seed_sd:.2g}, the same for all variants of a seed: paired out"
    if math.isfinite(judgement.smallest):
        facts["smallest effect"] = (
            f"{digits.value(judgement.smallest)} is found with a probability of {100 * POWER:.0f} % (median over variants)"
        )
    commits = sorted({str(run.result["git_commit"]) for run in sweep.runs if run.result.get("git_commit")})
    if commits:
        facts["git commit"] = words.named(commits)
    return page.section(
        "How it was compared",
        page.paragraph(words.method(sweep, judgement)),
        *(page.paragraph(line) for line in words.spread_notes(sweep, judgement)),
        page.facts(facts),
    )
