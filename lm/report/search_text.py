"""What a search has found, in rows: for a terminal, Markdown, CSV and JSON."""

import csv
import io
import math
import shlex
from typing import Any

from lm.sweep.algebra import Choice, Uniform
from lm.sweep.search_results import SearchResults, TrialRow
from lm.train.console import compact, duration, printable

_SHOWN = 10  # trials in a terminal


def unit_of(results: SearchResults) -> str:
    return {"bits_per_byte": "bits per byte", "loss": "nats per token"}[results.plan.metric]


def fields_of(results: SearchResults) -> dict[str, str]:
    """Return config path -> what heads its column: the field's name alone where that is clear."""
    last = [path.rsplit(".", 1)[-1] for path in results.plan.space]
    return {path: name if last.count(name) == 1 else path for path, name in zip(results.plan.space, last, strict=True)}


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def space_text(values: Uniform | Choice) -> str:
    """Return `0.001 to 0.1, logarithmic`."""
    if isinstance(values, Choice):
        return ", ".join(map(value_text, values.values))
    kinds = [kind for kind, is_so in (("whole", values.integer), ("logarithmic", values.log)) if is_so]
    return ", ".join([f"{values.low:g} to {values.high:g}", *kinds])


def status_text(trial: TrialRow) -> str:
    if trial.is_repeated and trial.status != "failed":
        return f"as {trial.result['variant']}"
    return f"ended at step {trial.step:,}" if trial.status == "pruned" else trial.status


def header_of(results: SearchResults) -> list[str]:
    return ["trial", unit_of(results), *fields_of(results).values(), "steps", "time", "status"]


def cells_of(results: SearchResults, trials: list[TrialRow]) -> list[list[str]]:
    """Return a row of text for each trial, under `header_of`."""
    return [
        [
            str(trial.number),
            f"{trial.value:.4f}" if math.isfinite(trial.value) else "-",
            *(value_text(trial.overrides[path]) if path in trial.overrides else "-" for path in results.plan.space),
            f"{trial.step:,}",
            duration(trial.result.get("seconds")),
            status_text(trial),
        ]
        for trial in trials
    ]


def command_of(results: SearchResults, trial: TrialRow) -> str:
    """Return the command line that trains a trial's config."""
    settings = {path: value for path, value in results.plan.settings.items() if path not in trial.overrides}
    given = [f"--config.{path}={value}" for path, value in (settings | dict(trial.overrides)).items()]
    return " ".join(
        map(shlex.quote, ["lm", "train", "--config", results.plan.config_file, "--workdir", "runs/best", *given])
    )


def findings(results: SearchResults) -> list[tuple[str, str]]:
    """Return `(kind, sentence)`: what was found, the most important first."""
    plan, best, unit = results.plan, results.best, unit_of(results)
    if best is None:
        return [("lead", "No trial is done yet." if not results.trials else "No trial has a result.")]
    lines = [("lead", f"Best: {best.value:.4f} {unit}, trial {best.number} of {len(results.trials)}.")]
    done = sorted(t.value for t in results.of("done") if math.isfinite(t.value))
    if len(done) > 2:
        median = done[len(done) // 2]
        lines.append(("", f"The median of the {len(done)} trials that trained to the end is {median:.4f} {unit}."))
    if results.importance:
        shares = [f"{path} {share:.0%}" for path, share in results.importance.items()]
        lines.append(("", f"What mattered, roughly: {', '.join(shares)}."))
    for path, values in plan.space.items():
        if edge := _edge(values, best.overrides[path]):
            lines.append(("", f"The best {path} is at the {edge} end of its range: the range may be too narrow."))
    if pruned := results.of("pruned"):
        whole = plan.rungs[1] * len(results.of("done", "pruned", "failed"))
        lines.append(
            (
                "remark",
                f"{len(pruned)} trials ended early (Hyperband): {compact(results.steps_trained)} steps trained of the "
                f"{compact(whole)} that all trials together ask for.",
            )
        )
    lines.append(
        (
            "remark",
            f"The best of {len(done)} is flattered by chance: a sweep of it and the base config over a few seeds says what it "
            "is worth.",
        )
    )
    return lines


def _edge(values: Uniform | Choice, best: Any) -> str:
    """Return `lower` or `upper` where a number is within a twentieth of its range of that end."""
    if isinstance(values, Choice):
        return ""
    scale = math.log if values.log else float
    place = (scale(best) - scale(values.low)) / (scale(values.high) - scale(values.low))
    if values.low == 0 and not values.log:  # nothing lies below
        return "upper" if place > 0.95 else ""
    return "lower" if place < 0.05 else "upper" if place > 0.95 else ""


def counts_text(results: SearchResults) -> str:
    """Return how many trials there are of each status."""
    names = {"done": "done", "pruned": "ended early", "failed": "failed", "running": "running", "waiting": "waiting"}
    counts = {name: len(results.of(status)) for status, name in names.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none begun"


def terminal_table(results: SearchResults) -> str:
    """Return the best trials in columns of plain text."""
    ranked = results.ranked()
    table = [header_of(results), *cells_of(results, ranked[:_SHOWN])]
    table = [[printable(cell) for cell in row] for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column == last else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    more = [f"… and {len(ranked) - _SHOWN} more"] if len(ranked) > _SHOWN else []
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *more])


def markdown(results: SearchResults) -> str:
    """Return what was found, the command and the trials as Markdown."""

    def row(cells: list[str]) -> str:
        return f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    header = header_of(results)
    lines = [f"# {printable(results.plan.name)}", "", printable(results.plan.description), ""]
    lines += [f"- {printable(line)}" for _, line in findings(results)]
    if results.best:
        lines += ["", "```", command_of(results, results.best), "```"]
    lines += ["", row(header), row(["--:"] * (len(header) - 1) + [":--"])]
    lines += [row(cells) for cells in cells_of(results, results.ranked())]
    failures = [f"- trial {trial.number}: {printable(trial.failure)}" for trial in results.trials if trial.failure]
    return "\n".join([*lines, *([""] + failures if failures else []), ""])


def csv_table(results: SearchResults) -> str:
    """Return one line per trial in the order proposed, at full precision; empty where not known."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "id", "status", results.plan.metric, "step", "seconds", *results.plan.space, "failure"])
    for t in results.trials:
        value = repr(t.value) if math.isfinite(t.value) else ""
        own = [t.overrides.get(path, "") for path in results.plan.space]
        about = [t.number, t.result.get("id", ""), t.status, value, t.step, t.result.get("seconds", "")]
        writer.writerow([*about, *own, t.failure or ""])
    return out.getvalue()


def result_object(results: SearchResults) -> dict[str, Any]:
    """Return all that the report says as one object for JSON."""
    best = results.best

    def plain(t: TrialRow) -> dict[str, Any]:
        about = {"trial": t.number, "id": t.result.get("id"), "status": t.status, "value": t.value, "step": t.step}
        return {**about, "overrides": dict(t.overrides), "failure": t.failure}

    return {
        "name": results.plan.name,
        "metric": results.plan.metric,
        "search": results.plan.kind,
        "planned": results.plan.trials,
        "best": plain(best) | {"command": command_of(results, best)} if best else None,
        "importance": dict(results.importance),
        "steps_trained": results.steps_trained,
        "trials": [plain(trial) for trial in results.trials],
    }
