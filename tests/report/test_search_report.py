"""A search's page, Markdown, CSV and table: they say what the trials say, whatever state the search is in."""

import csv
import html
import re
import shlex

import pytest

from lm.report import search_text
from lm.report.search import write_search_report
from lm.storage import read_text
from lm.sweep.algebra import Choice, Uniform
from lm.sweep.search_results import read_search_results
from tests.report.test_run_report import Checker
from tests.sweep.searches import SPACE, open_search, search

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("searches") / "done")
    trials = open_search(folder, settings={"data.batch_size": 4}, trials=20)
    with trials.next(20) as trial:
        trials.finish(trial.number, "failed", failure="loss is nan at step <3>")
    search(trials, 20)
    write_search_report(folder)
    return folder


def test_the_page_fetches_nothing_is_well_formed_and_escapes_what_it_shows(finished):
    content = read_text(f"{finished}/report.html")
    checker = Checker()
    checker.feed(content)
    assert not checker.open
    assert not {"script", "link", "img", "iframe"} & checker.tags
    assert not re.search(r"url\((?!#)|@import", content)
    ids = re.findall(r' id="([^"]+)"', content)
    assert len(ids) == len(set(ids))
    assert "loss is nan at step &lt;3&gt;" in content and "1 of 20 trials failed" in content


def test_the_best_trial_comes_first_with_the_command_that_trains_it(finished):
    results = read_search_results(finished)
    best = min((t for t in results.trials if t.status == "done"), key=lambda t: t.value)
    assert search_text.findings(results)[0][1] == f"Best: {best.value:.4f} nats per token, trial {best.number} of 20."
    words = shlex.split(search_text.command_of(results, best))
    given = dict(word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config."))
    assert given == {name: str(value) for name, value in {"data.batch_size": 4, **best.overrides}.items()}
    assert html.escape(f"--config.optimizer.learning_rate={best.overrides['optimizer.learning_rate']}") in read_text(
        f"{finished}/report.html"
    )


def test_every_field_has_its_chart_and_the_two_that_matter_most_share_one(finished):
    content, importance = read_text(f"{finished}/report.html"), read_search_results(finished).importance
    for path in SPACE:
        assert f'aria-label="nats per token against {path}.' in content
    first, second = [*importance][:2]
    assert f"Trials over {first} and {second}." in content


def test_the_csv_holds_all_trials_at_full_precision(finished):
    rows = list(csv.DictReader(read_text(f"{finished}/table.csv").splitlines()))
    results = read_search_results(finished)
    assert [int(row["trial"]) for row in rows] == list(range(20))
    for row, trial in zip(rows, results.trials, strict=True):
        assert row["status"] == trial.status
        assert row["loss"] == (repr(trial.value) if trial.status != "failed" else "")
    assert "| 0 |" in read_text(f"{finished}/report.md") and "- trial 0: loss is nan" in read_text(
        f"{finished}/report.md"
    )


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_search_that_has_just_begun_has_a_page(tmp_path, count):
    folder = str(tmp_path / "begun")
    search(open_search(folder), count)
    content = read_text(write_search_report(folder))
    assert f"{count} of 20 trials have ended" in content
    assert not read_search_results(folder).importance


def test_a_best_value_at_the_end_of_its_range_is_pointed_out():
    decay = Uniform(1e-3, 1.0, log=True)
    assert [search_text._edge(decay, value) for value in (1.1e-3, 0.03, 0.95)] == ["lower", "", "upper"]
    assert search_text._edge(Uniform(0, 20, integer=True), 0) == "", "below no warmup there is nothing"
    assert search_text._edge(Choice((1, 2)), 1) == ""
