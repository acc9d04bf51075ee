"""The page about a search: the best trial first, how to train it, and what the others say about the space."""

import math

import numpy as np

from lm.report import page
from lm.report import search_text as text
from lm.report.scatter import Axis, Points, scatter, surface
from lm.storage import join, write_atomic
from lm.sweep.algebra import Choice
from lm.sweep.results import flat
from lm.sweep.search_results import FEWEST, SearchResults, TrialRow, read_search_results
from lm.train.console import duration

MOST_ROWS = 12  # of a table that is not folded
_CAPTION = "a dot is a trial trained to the end, a ring one that ended early, an arrow one far above"


def write_search_report(folder: str, out: str | None = None) -> str:
    """Write `report.html`, `report.md` and `table.csv` into a search's folder; return the page's path.

    Args:
      folder: of a search, finished or not.
      out: where the page goes instead.

    Raises:
      UsageError: the folder holds no search, or optuna is not installed.
      DamagedFileError: a file in it is not what it should be.
      LmError: a file cannot be read or written.
    """
    results = read_search_results(folder)
    path = out or join(folder, "report.html")
    write_atomic(path, search_page(results))
    write_atomic(join(folder, "report.md"), text.markdown(results))
    write_atomic(join(folder, "table.csv"), text.csv_table(results))
    return path


def search_page(results: SearchResults) -> page.Markup:
    plan = results.plan
    return page.page(
        plan.name,
        _subtitle(results),
        page.paragraph(plan.description) if plan.description else None,
        *_notices(results),
        page.section(
            "Result",
            page.statements(text.findings(results)),
            *(
                [page.verbatim(text.command_of(results, results.best).replace(" --", " \\\n  --"))]
                if results.best
                else []
            ),
        ),
        _progress(results),
        _fields(results),
        _importance(results),
        _pair(results),
        _table(results),
        _failures(results),
        _method(results),
    )


def _subtitle(results: SearchResults) -> str:
    seconds = sum(t.result.get("seconds") or 0 for t in results.trials if not t.is_repeated)
    return f"{len(results.plan.space)} fields of {results.plan.config_file} · {text.counts_text(results)} · {duration(seconds)}"


def _notices(results: SearchResults) -> list[page.Markup]:
    out, ended = [], len(results.of("done", "pruned", "failed"))
    if ended < results.plan.trials:
        out.append(f"This search is not finished: {ended} of {results.plan.trials} trials have ended.")
    if failed := len(results.of("failed")):
        out.append(f"{failed} of {len(results.trials)} trials failed; their reasons are below.")
    return [page.notice(line) for line in out]


def _valued(results: SearchResults) -> list[TrialRow]:
    return [t for t in results.of("done", "pruned") if math.isfinite(t.value) and t.overrides]


def _points(trials: list[TrialRow], x: list[float]) -> Points:
    return Points(
        np.array(x, float), np.array([t.value for t in trials]), np.array([t.status == "done" for t in trials], bool)
    )


def _progress(results: SearchResults) -> page.Markup | None:
    trials, unit = _valued(results), text.unit_of(results)
    if len(trials) < 2:
        return None
    points = _points(trials, [t.number for t in trials])
    axis = Axis("trial", 0, max(t.number for t in trials), integer=True)
    best = results.best
    told = f"{unit} of the trials in order" + (
        f"; the lowest is {best.value:.4f} in trial {best.number}." if best else "."
    )
    figures = [
        page.figure(svg, f"{unit.capitalize()}, and the best so far", kind)
        for kind, width in (("wide", 876), ("narrow", 420))
        if (
            svg := scatter(
                points, axis, name=f"trials-{kind}", description=told, width=width, height=280, best_so_far=True
            )
        )
    ]
    return page.section("Trials", *figures)


def _axis_of(results: SearchResults, path: str) -> Axis:
    values = results.plan.space[path]
    if isinstance(values, Choice):
        shown = [text.value_text(value) for value in values.values]
        return Axis(path, 0, len(shown) - 1, choices=shown)
    return Axis(path, values.low, values.high, values.log, values.integer)


def _places(results: SearchResults, path: str, trials: list[TrialRow]) -> list[float]:
    """Return where trials are on a field's axis."""
    values = results.plan.space[path]
    if isinstance(values, Choice):
        return [[*values.values].index(t.overrides[path]) for t in trials]
    return [t.overrides[path] for t in trials]


def _order(results: SearchResults) -> list[str]:
    return [*results.importance, *(path for path in results.plan.space if path not in results.importance)]


def _fields(results: SearchResults) -> page.Markup | None:
    trials, unit = _valued(results), text.unit_of(results)
    if not trials:
        return None
    figures = []
    for number, path in enumerate(_order(results)):
        told = f"{unit} against {path}."
        if results.best:
            told += f" The best trial has {text.value_text(results.best.overrides[path])}."
        axis = _axis_of(results, path)
        svg = scatter(_points(trials, _places(results, path, trials)), axis, name=f"field-{number}", description=told)
        figures.append(page.figure(svg, path))
    return page.section("Field by field", page.paragraph(f"{unit.capitalize()}: {_CAPTION}."), page.grid(*figures))


def _importance(results: SearchResults) -> page.Markup | None:
    if not results.importance:
        return None
    rows = [[path, _bar(share)] for path, share in results.importance.items()]
    return page.section(
        "What mattered",
        page.table(["field", "share"], rows),
        page.paragraph(
            "PED-ANOVA (Watanabe et al. 2023): how differently a field is spread over the best quarter of the trials than over all. "
            "Trials that ended early count with their last evaluation. From a few tens of trials the shares are rough."
        ),
    )


def _bar(share: float) -> page.Markup:
    width = max(1, round(220 * share))
    return page.Markup(
        f'<svg width="{width}" height="10" role="presentation"><rect width="{width}" height="10" rx="2" '
        f'fill="var(--series-0)"/></svg> {share:.0%}'
    )


def _pair(results: SearchResults) -> page.Markup | None:
    """Return the trials over the two fields that mattered most."""
    trials, paths = _valued(results), [*results.importance][:2]
    if len(paths) < 2:
        return None
    across, up = paths
    points = _points(trials, _places(results, across, trials))
    told = f"Trials over {across} and {up}."
    figures = [
        page.figure(svg, "The darker, the better are the trials around; the best in colour", kind)
        for kind, width in (("wide", 876), ("narrow", 420))
        if (
            svg := surface(
                points,
                np.array(_places(results, up, trials), float),
                _axis_of(results, across),
                _axis_of(results, up),
                name=f"pair-{kind}",
                description=told,
                width=width,
            )
        )
    ]
    return page.section(f"{across} and {up}", *figures) if figures else None


def _table(results: SearchResults) -> page.Markup | None:
    ranked = results.ranked()
    if not ranked:
        return None
    header = text.header_of(results)
    numeric = range(len(header) - 1)

    def table(trials: list[TrialRow]) -> page.Markup:
        return page.table(header, text.cells_of(results, trials), numeric=numeric, kind="tight")

    pieces = [table(ranked[:MOST_ROWS])]
    if len(ranked) > MOST_ROWS:
        pieces.append(page.fold(f"The other {len(ranked) - MOST_ROWS} trials", table(ranked[MOST_ROWS:])))
    return page.section("All trials, the best first", *pieces)


def _failures(results: SearchResults) -> page.Markup | None:
    rows = [[t.number, t.step, t.failure] for t in results.trials if t.failure]
    return page.section("Failures", page.table(["trial", "steps", "failure"], rows, numeric=[0, 1])) if rows else None


def _method(results: SearchResults) -> page.Markup:
    plan = results.plan
    ways = {
        "optuna": f"Optuna proposed by a tree-structured Parzen estimator and ended trials by Hyperband between steps "
        f"{plan.rungs[0]:,} and {plan.rungs[1]:,}. Trials are compared at equal steps.",
        "random": "Trials were drawn at random, and all trained to the end.",
    }
    facts = {
        "space": page.Markup(
            "<br>".join(page.escape(f"{path}: {text.space_text(values)}") for path, values in plan.space.items())
        ),
        "settings": ", ".join(f"{path}={value}" for path, value in plan.settings.items()) or "as in the file",
        "seed of the search": plan.seed,
    }
    if not results.importance:
        facts["importance"] = f"told from {FEWEST} trials on"
    commits = sorted({str(t.result["git_commit"]) for t in results.trials if t.result.get("git_commit")})
    if commits:
        facts["git commit"] = ", ".join(commits)
    whole = page.fold(
        "The base config", page.table(["field", "value"], [[k, text.value_text(v)] for k, v in flat(plan.base).items()])
    )
    return page.section("How it was searched", page.paragraph(ways[plan.kind]), page.facts(facts), whole)
