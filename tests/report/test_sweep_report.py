"""A sweep's page, Markdown, CSV and table: they say what the runs say, whatever state the sweep is in."""

import csv
import html
import json
import pathlib
import re

import pytest

from lm.errors import DamagedFileError, UsageError
from lm.report import sweep_text, sweep_words
from lm.report.sweep import write_sweep_report
from lm.storage import read_text, write_atomic
from lm.sweep.results import read_curve, read_curves, read_sweep
from lm.sweep.statistics import judge
from tests.report.test_run_report import Checker
from tests.sweep.common import run_id, write_sweep

THREE = {
    "gelu": {"model.activation": "gelu"},
    "swiglu": {"model.activation": "swiglu", "model.d_ff": 512},
    "relu2": {"model.activation": "relu2"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = write_sweep(tmp_path_factory.mktemp("sweeps") / "done", THREE, {"swiglu": -0.021})
    write_sweep_report(folder)
    return folder


def page_of(folder):
    return html.unescape(read_text(write_sweep_report(str(folder))))


def lines_of(folder):
    sweep = read_sweep(folder)
    return [line for _, line in sweep_words.verdict_lines(sweep, sweep_words.judge_sweep(sweep))]


def test_the_page_fetches_nothing_and_is_well_formed(finished):
    content = read_text(f"{finished}/report.html")
    checker = Checker()
    checker.feed(content)
    assert not checker.open
    assert not {"script", "link", "img", "iframe"} & checker.tags
    assert all(link.startswith("#") for link in checker.links)
    assert not re.search(r"url\((?!#)|@import", content)
    ids = re.findall(r' id="([^"]+)"', content)
    assert len(ids) == len(set(ids))


def test_the_verdict_comes_first_and_holds_the_numbers_of_the_test(finished):
    sweep = read_sweep(finished)
    found = judge(sweep.values(), "gelu").of("swiglu")
    assert found.verdict == "better"
    line = lines_of(finished)[0]
    percent, size, low, high = map(
        float,
        re.match(
            r"swiglu beats gelu by ([\d.]+) % \(([\d.]+) bits per byte, 95 % interval ([\d.]+) to ([\d.]+), p .*, 3 seeds\)\.",
            line,
        ).groups(),
    )
    assert percent == pytest.approx(-found.percent, rel=0.05)
    assert (size, low, high) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-4)
    content = page_of(finished)
    parts = [line, "Smallest difference this sweep could have seen", "Difference to gelu in bits", "Variants</h2>"]
    parts += ["Values of each seed", "What a run took", "Curves</h2>", "over tokens", "over training FLOPs, 10¹²"]
    parts += ["over wall time", "What differs</h2>", "model.d_ff", "How it was compared</h2>", "Dunnett"]
    places = [content.index(part) for part in parts]
    assert places == sorted(places)


def test_text_markdown_csv_and_json_agree(finished):
    sweep = read_sweep(finished)
    judgement = sweep_words.judge_sweep(sweep)
    rows = list(csv.DictReader(read_text(f"{finished}/table.csv").splitlines()))
    assert [row["variant"] for row in rows] == ["swiglu", "gelu", "relu2"]  # the best first
    assert [row["verdict"] for row in rows] == ["better", "baseline", "no difference seen"]
    seeds = [float(rows[0][f"seed_{seed}"]) for seed in range(3)]
    assert float(rows[0]["bits_per_byte"]) == pytest.approx(sum(seeds) / 3)
    assert rows[0]["mfu"] == ""
    assert float(rows[0]["difference"]) == judgement.of("swiglu").mean
    markdown = read_text(f"{finished}/report.md")
    assert all(line in markdown for line in lines_of(finished))
    assert re.search(r"\| swiglu \| 3/3 \| 1\.\d+ \| -0\.0\d+ \| -1\.\d %", markdown)
    result = sweep_text.result_object(sweep, judgement)
    assert result["variants"][0]["difference"] == judgement.of("swiglu").mean
    assert result["verdict"] == lines_of(finished)
    table = sweep_text.terminal_table(sweep).splitlines()
    assert table[0].split()[:5] == ["variant", "runs", "bits", "per", "byte"]
    assert table[2].startswith("swiglu") and table[2].endswith("better")
    assert max(map(len, table)) <= 100


def test_the_same_folder_gives_the_same_bytes(finished):
    first = read_text(f"{finished}/report.html")
    assert read_text(write_sweep_report(finished)) == first


def test_failures_and_pending_runs_are_rows_and_said(tmp_path):
    folder = write_sweep(
        tmp_path / "s",
        THREE | {"broken": {"model.d_ff": 1}},
        failed={("swiglu", 1): "the loss was not finite at step 200 <b>"} | {("broken", s): "killed" for s in range(3)},
        pending=lambda variant, seed: variant == "relu2" and seed == 2,
        curves=False,
    )
    content = page_of(folder)
    assert "the loss was not finite at step 200 <b>" in content
    assert "<b>" not in read_text(f"{folder}/report.html").split("Failures</h2>")[1].split("</table>")[0]
    assert "4 of 12 runs failed" in content and "1 of 12 runs are pending" in content
    lines = " ".join(lines_of(folder))
    assert "All runs failed of broken." in lines
    assert "Failed and left out: swiglu (1 run)" in lines
    assert "1 run of 12 pending: this can change." in lines
    cells = {
        row[0]: row for row in sweep_text.table_cells(read_sweep(folder), sweep_words.judge_sweep(read_sweep(folder)))
    }
    assert cells["broken"][1:3] == ["0/3", "-"] and cells["broken"][-1] == "no verdict"
    assert cells["swiglu"][1] == "2/3"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pending": lambda variant, seed: True}, "No run has finished yet: 9 pending."),
        ({"failed": {(v, s): "NaN" for v in THREE for s in range(3)}}, "All 9 runs failed"),
        ({"failed": {("gelu", s): "NaN" for s in range(3)}}, "The baseline gelu has no finished run"),
        ({"seeds": (5,)}, "One seed allows no verdict: "),
        ({"noise": 0.0}, "The seeds made no difference at all"),
    ],
)
def test_a_sweep_in_any_state_has_a_report(tmp_path, options, says):
    folder = write_sweep(tmp_path / "s", THREE, curves=False, **options)
    assert says in " ".join(lines_of(folder))
    assert says in page_of(folder)
    assert sweep_text.terminal_table(read_sweep(folder)).count("\n") == 4


def test_a_run_without_a_finite_value_is_said_and_left_out(tmp_path):
    folder = write_sweep(tmp_path / "s", THREE, {"swiglu": -0.05}, curves=False)
    path = tmp_path / "s" / "results" / f"{run_id('swiglu', 2)}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final": {"step": 600, "bits_per_byte": None}}))
    lines = lines_of(folder)
    assert "Done without a finite bits per byte and left out: swiglu seed 2." in lines
    assert "2 seeds)" in lines[0]
    assert "no value" in page_of(folder)


def test_a_single_variant_is_not_compared(tmp_path):
    folder = write_sweep(tmp_path / "s", {"gelu": {}}, curves=False)
    assert lines_of(folder) == ["gelu is the only variant; there is nothing to hold against it."]
    assert "nothing to hold against it" in page_of(folder)


def test_many_variants_are_counted_first_and_only_the_most_telling_have_sentences(tmp_path):
    names = [f"v{number}" for number in range(30)]
    effects = {name: 0.004 * (number - 10) for number, name in enumerate(names)}
    folder = write_sweep(
        tmp_path / "s",
        {name: {"model.d_ff": 64 + n} for n, name in enumerate(names)},
        effects,
        baseline="v10",
        curves=False,
    )
    sweep = read_sweep(folder)
    verdicts = [d.verdict for d in sweep_words.judge_sweep(sweep).differences]
    lines = lines_of(folder)
    beat, worse = verdicts.count("better"), verdicts.count("worse")
    assert lines[0].startswith(f"Of 29 variants {beat} beat v10, {worse} are worse")
    assert len(lines) <= 14
    assert lines[1].startswith("v0 beats v10")
    assert next(line for line in lines if "is worse than" in line).startswith("v29 ")
    assert page_of(folder).count("<tr>") > 60


def test_one_numeric_field_is_drawn_against_its_values_and_two_as_a_grid(tmp_path):
    rates = [1e-3 * 2**n for n in range(6)]
    one = write_sweep(
        tmp_path / "one",
        {f"{rate:g}": {"optimizer.learning_rate": rate} for rate in rates},
        {"0.008": -0.1},
        curves=False,
    )
    content = page_of(one)
    assert "Against optimizer.learning_rate" in content
    assert "The lowest mean is at optimizer.learning_rate = 0.008." in content
    assert ">0.032<" in content  # the tick of a swept value: the axis is logarithmic
    grid = {f"d{d} l{n}": {"model.d_model": d, "model.num_layers": n} for d in (64, 128) for n in (2, 4, 6)}
    content = page_of(write_sweep(tmp_path / "two", grid, curves=False))
    assert "model.d_model and model.num_layers" in content and "the lowest is framed" in content
    assert "Against" not in content
    assert "framed" not in page_of(write_sweep(tmp_path / "names", THREE, curves=False))


def test_unequal_budgets_and_several_commits_are_said(tmp_path):
    folder = write_sweep(tmp_path / "s", THREE, curves=False)
    path = tmp_path / "s" / "results" / f"{run_id('swiglu', 0)}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": 900_000, "git_commit": "fedcba9"}))
    content = page_of(folder)
    assert "equal tokens, but the largest has 1.46 times the smallest" in content
    assert "2 commits: 0123abc and fedcba9" in content


def test_a_curve_is_of_validation_where_there_is_enough_of_it_and_counts_flops_by_tokens(tmp_path):
    folder = write_sweep(tmp_path / "s", {"gelu": {}}, seeds=(0,), evals=12)
    sweep = read_sweep(folder)
    curve = read_curve(sweep, sweep.runs[0])
    assert curve.is_validation and len(curve.steps) == 12
    assert curve.metric[-1] == pytest.approx(sweep.runs[0].final("bits_per_byte"))
    assert curve.axes["tokens"][-1] == sweep.runs[0].number("tokens")
    assert curve.axes["flops"][-1] == pytest.approx(sweep.runs[0].number("flops"))
    few = read_sweep(write_sweep(tmp_path / "few", {"gelu": {}}, seeds=(0,), evals=1))
    assert not read_curve(few, few.runs[0]).is_validation


def test_one_runs_validation_is_not_drawn_beside_anothers_training_batches(tmp_path):
    folder = write_sweep(tmp_path / "s", {"gelu": {}, "swiglu": {}}, seeds=(0,), evals=12)
    sweep = read_sweep(folder)
    path = tmp_path / "s" / "runs" / sweep.runs[0].id / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if json.loads(line).get("kind") != "eval"]
    path.write_text("\n".join(lines) + "\n")
    assert [read_curve(sweep, run).is_validation for run in sweep.runs] == [False, True]
    assert [curve.is_validation for curve in read_curves(sweep).values()] == [False, False]


def test_what_comes_from_names_is_escaped_and_drawn_as_it_is(tmp_path):
    folder = write_sweep(
        tmp_path / "s", {"_a $x$": {"model.d_ff": 1}, "<script>": {"model.d_ff": 2}}, {"<script>": -0.05}
    )
    content = read_text(write_sweep_report(folder))
    assert "<script>" not in content
    assert "&lt;script&gt; beats" in content
    assert "_a $x$</text>" in content  # no mathematics in the chart's legend


def test_a_sweep_on_an_object_store_is_read_and_reported_there(tmp_path):
    folder = pathlib.Path(write_sweep(tmp_path / "s", THREE, curves=False))
    for path in filter(pathlib.Path.is_file, folder.rglob("*")):
        write_atomic(f"memory://sweep/{path.relative_to(folder)}", path.read_bytes())
    assert write_sweep_report("memory://sweep") == "memory://sweep/report.html"
    assert read_text("memory://sweep/report.html") == read_text(write_sweep_report(str(folder)))


def test_names_with_commas_are_told_apart():
    assert sweep_words.named(["a", "b", "c"]) == "a, b and c"
    assert sweep_words.named(["a=1, b=2", "a=1, b=3", "c"]) == "a=1, b=2; a=1, b=3 and c"
    assert sweep_words.named(list("abcdef"), most=4) == "a, b, c, d and 2 more"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.34, "+1.3 %"), (-12.6, "-13 %"), (2.0, "+2.0 %"), (0.0391, "+0.039 %"), (0.0, "0 %"), (-1e-7, "0.000 %")],
)
def test_percentages_have_two_digits(value, shown):
    assert sweep_words.percent(value, sign=True) == shown


def test_a_folder_without_a_sweep_and_a_damaged_one_give_one_line(tmp_path):
    with pytest.raises(UsageError, match="no sweep in"):
        read_sweep(str(tmp_path))
    folder = write_sweep(tmp_path / "s", THREE, curves=False)
    plan = json.loads((tmp_path / "s" / "sweep.json").read_text())
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(plan | {"baseline": "silu"}))
    with pytest.raises(DamagedFileError, match='no variant "silu"'):
        read_sweep(folder)
    del plan["runs"]
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(plan))
    with pytest.raises(DamagedFileError, match="not a sweep's plan"):
        read_sweep(folder)
    (tmp_path / "s" / "sweep.json").write_text("{")
    with pytest.raises(DamagedFileError, match="is damaged"):
        read_sweep(folder)
