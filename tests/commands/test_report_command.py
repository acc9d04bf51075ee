"""`lm report`: a sweep's page and verdict, a run's page, one line for what is neither."""

import json

from tests.report.test_run_report import write_run
from tests.sweep.common import write_sweep

VARIANTS = {"gelu": {"model.activation": "gelu"}, "swiglu": {"model.activation": "swiglu"}}


def test_a_sweep_gets_its_files_and_the_verdict_goes_to_stdout(lm, tmp_path):
    folder = write_sweep(tmp_path / "sweep", VARIANTS, {"swiglu": -0.1}, curves=False)
    done = lm("report", folder)
    assert done.code == 0 and done.err == f"lm: wrote {folder}/report.html\n"
    assert "swiglu beats gelu by" in done.out
    assert done.out.startswith("variant")
    for name in ("report.html", "report.md", "table.csv"):
        assert "swiglu" in (tmp_path / "sweep" / name).read_text()


def test_the_page_can_go_elsewhere(lm, tmp_path):
    folder = write_sweep(tmp_path / "sweep", VARIANTS, curves=False)
    assert lm("report", folder, "--out", tmp_path / "mine.html").code == 0
    assert (tmp_path / "mine.html").read_text().startswith("<!DOCTYPE html>")
    assert not (tmp_path / "sweep" / "report.html").exists()


def test_the_other_formats_are_printed_or_written_and_leave_the_folder_alone(lm, tmp_path):
    folder = write_sweep(tmp_path / "sweep", VARIANTS, curves=False)
    starts = {"markdown": "# swiglu_vs_gelu", "csv": "variant,verdict,", "table": "variant"}
    for form, start in starts.items():
        printed = lm("report", folder, "--format", form)
        assert printed.code == 0 and printed.out.startswith(start) and printed.err == ""
        assert lm("report", folder, "--format", form, "--out", tmp_path / form).out == ""
        assert (tmp_path / form).read_text() == printed.out
    assert not [path for path in (tmp_path / "sweep").iterdir() if path.name.startswith(("report", "table"))]


def test_json_has_the_verdict_and_no_nan(lm, tmp_path):
    folder = write_sweep(
        tmp_path / "sweep", VARIANTS, curves=False, failed={("swiglu", seed): "NaN" for seed in range(3)}
    )
    result = json.loads(
        lm("report", folder, "--json").out, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name))
    )
    assert result["report"] == f"{folder}/report.html"
    assert result["runs"] == {"done": 3, "failed": 3, "pending": 0}
    assert result["verdict"] == ["All runs failed of swiglu."]


def test_a_runs_folder_gets_the_page_about_the_run(lm, tmp_path):
    folder = write_run(tmp_path / "run", last=20)
    done = lm("report", folder)
    assert done.code == 0 and done.out == f"{folder}/report.html\n"
    assert "Learning rate" in (tmp_path / "run" / "report.html").read_text()
    assert "a run has a page only" in lm("report", folder, "--format", "csv").refusal(2)


def test_a_folder_with_neither_is_refused(lm, tmp_path):
    assert "no sweep (sweep.json), search (search.json) or run (config.json)" in lm("report", tmp_path).refusal(2)
    assert "exclude each other" in lm("report", tmp_path, "--json", "--format", "csv").refusal(2)
