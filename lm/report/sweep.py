"""The page about a sweep: the verdict first, then what it rests on; with Markdown and CSV beside it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.report import page
from lm.report import sweep_text as text
from lm.report.charts import Interval, heat_map, interval_chart
from lm.report.plots import Series, line_plot, smooth
from lm.storage import join, write_atomic
from lm.sweep.results import Curve, Sweep, flat, read_curve, read_sweep
from lm.sweep.statistics import POWER, Judgement
from lm.train.console import duration

MOST_COLORED = 6  # lines of their own in the curves; the others are faint
POINTS = 200  # of a curve
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SKIPPED = 0.25  # of a run, in the curves of differences: at first they are large and say little


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
    judgement = text.judge_sweep(sweep)
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
        page.section("Verdict", page.statements(text.verdict_lines(sweep, judgement)), *_differences(sweep, judgement)),
        _table(sweep, judgement),
        _swept(sweep, judgement),
        _curves(sweep, judgement),
        _configs(sweep),
        _failures(sweep),
        _method(sweep, judgement),
    )


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
    unit, digits = text.unit_of(sweep), text.Digits(judgement)
    ordered = sorted((d for d in judgement.differences if d.seeds), key=lambda d: d.mean)
    rows = [
        Interval(
            label=d.variant if len(d.variant) <= 36 else d.variant[:35] + "…",
            mean=d.mean,
            values=d.per_seed,
            low=d.low if math.isfinite(d.low) else None,
            high=d.high if math.isfinite(d.high) else None,
            kind=d.verdict if d.verdict in ("better", "worse") else "neither",
            remark=f"{text.percent(d.percent, sign=True)}{f' {d.verdict}' if d.verdict in ('better', 'worse') else ''}",
        )
        for d in ordered
    ]
    told = f"Differences to {sweep.baseline} in {unit}. " + " ".join(
        f"{d.variant} {digits.difference(d.mean, sign=True)} ({digits.interval(d.low, d.high)})." for d in ordered
    )
    caption = f"Difference to {sweep.baseline} in {unit}"
    if judgement.num_compared:
        caption += f": mean, {text.CONFIDENCE} interval, a stroke for each seed"
    out = []
    for kind, options in (("wide", {"width": 876}), ("narrow", {"width": 420, "labels_above": True})):
        svg = interval_chart(
            rows, name=f"differences-{kind}", description=told, x_label="← better · worse →", **options
        )
        if svg:
            out.append(page.figure(svg, caption, kind))
    return out


def _table(sweep: Sweep, judgement: Judgement) -> page.Markup:
    header = [text.unit_of(sweep) if name == "mean" else name for name in text.HEADER]
    rows = [[*cells[:-1], _marked(cells[-1])] for cells in text.table_cells(sweep, judgement)]
    return page.section(
        "Variants",
        page.table(header, rows, numeric=range(1, len(header) - 1), kind="tight"),
        page.fold(f"Values of each seed ({len(sweep.seeds)})", _per_seed(sweep, judgement)),
        page.heading("What a run took (medians)"),
        page.table(
            text.COST_HEADER, text.cost_cells(sweep, judgement), numeric=range(1, len(text.COST_HEADER)), kind="tight"
        ),
    )


def _marked(verdict: str) -> page.Markup:
    if verdict not in ("better", "worse"):
        return page.escape(verdict)
    return page.Markup(f'<span class="{verdict}"><b>{verdict}</b></span>')


def _per_seed(sweep: Sweep, judgement: Judgement) -> page.Markup:
    values, digits = sweep.values(), text.Digits(judgement)
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
    values, unit = sweep.values(), text.unit_of(sweep)
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
                x_label=text.printable(field).replace("$", ""),
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
    values, digits = sweep.values(), text.Digits(judgement)
    (row_field, of_row), (column_field, of_column) = settings.items()
    rows, columns = (_ordered(list(of.values())) for of in (of_row, of_column))
    if min(len(rows), len(columns)) < 2 or len(sweep.variants) < 0.6 * len(rows) * len(columns):
        return None  # two fields, but no grid
    grid = np.full((len(rows), len(columns)), np.nan)
    for name, own in values.items():
        if own:
            grid[rows.index(of_row[name]), columns.index(of_column[name])] = np.mean(list(own.values()))
    told = f"Final {text.unit_of(sweep)}, {row_field} down, {column_field} across."
    figures = [
        page.figure(svg, f"Final {text.unit_of(sweep)}, mean over the seeds; the lowest is framed", kind)
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


def _curves(sweep: Sweep, judgement: Judgement) -> page.Markup | None:
    """Return loss curves over tokens, FLOPs and time, and the differences to the baseline over tokens."""
    done = [run for run in sweep.runs if run.status == "done"]
    curves = {(run.variant, run.seed): curve for run in done if (curve := read_curve(sweep, run)) is not None}
    if not curves:
        return None
    is_validation = all(curve.is_validation for curve in curves.values())
    names = [row.name for row in text.rows_of(sweep, judgement) if any(name == row.name for name, _ in curves)]
    colored = _colored(sweep, judgement, names)
    order = [name for name in names if name not in colored] + colored
    bands = {name: _band([curve for (own, _), curve in curves.items() if own == name]) for name in order}
    what = f"{'Validation' if is_validation else 'Training'} {text.unit_of(sweep)}"
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
            + (f" Faint: {text.counted(others, 'variant')} more." if others > 0 else "")
        ),
        figure("tokens", "wide", width=876, height=330),
        figure("tokens", "narrow"),
        *_difference_curves(sweep, curves, colored),
        page.grid(figure("flops", "", legend=False), figure("seconds", "", legend=False)),
    )


def _colored(sweep: Sweep, judgement: Judgement, names: list[str]) -> list[str]:
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
    return page.section("What differs", page.fold(f"{len(rows)} rows", table) if len(rows) > 24 else table, same, whole)


def _failures(sweep: Sweep) -> page.Markup | None:
    rows = [
        [run.variant, run.seed, "-" if math.isnan(run.number("steps")) else f"{run.number('steps'):,.0f}", run.failure]
        for run in sweep.runs
        if run.failure
    ]
    return page.section("Failures", page.table(["variant", "seed", "steps", "failure"], rows)) if rows else None


def _method(sweep: Sweep, judgement: Judgement) -> page.Markup:
    digits = text.Digits(judgement)
    facts = {"runs": ", ".join(f"{sweep.count(s):,} {s}" for s in ("done", "failed", "pending") if sweep.count(s))}
    if judgement.degrees_of_freedom:
        facts["noise of a run"] = (
            f"s = {judgement.residual_sd:.2g} {text.unit_of(sweep)}, {judgement.degrees_of_freedom} degrees of freedom"
        )
    if math.isfinite(judgement.seed_sd):
        facts["spread of the seeds"] = f"{judgement.seed_sd:.2g}, the same for all variants of a seed: paired out"
    if math.isfinite(judgement.smallest):
        facts["smallest effect"] = (
            f"{digits.value(judgement.smallest)} is found with a probability of {100 * POWER:.0f} % (median over variants)"
        )
    commits = sorted({str(run.result["git_commit"]) for run in sweep.runs if run.result.get("git_commit")})
    if commits:
        facts["git commit"] = text.named(commits)
    return page.section(
        "How it was compared",
        page.paragraph(text.method(sweep, judgement)),
        *(page.paragraph(line) for line in text.spread_notes(sweep, judgement)),
        page.facts(facts),
    )
