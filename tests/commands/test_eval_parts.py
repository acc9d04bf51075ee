"""`lm eval --by`, `--all-steps` and `--compare`."""

import json
import math

import numpy as np
import pytest

from lm.__main__ import main
from lm.checkpoint import layout
from lm.evaluate import breakdown
from lm.evaluate.breakdown import Breakdown
from lm.storage import LineLog

pytestmark = pytest.mark.slow  # each trains a model of its own


@pytest.fixture
def texts(corpus, tmp_path):
    """A folder of two files, and a third."""
    words = corpus.read_text()
    (tmp_path / "folder").mkdir()
    parts = {"folder/a.txt": words[:1500], "folder/b.txt": words[1500:2500], "c.txt": "ABC " * 200}
    for name, text in parts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def history(config, tmp_path_factory):
    """A run that kept all its checkpoints."""
    workdir = tmp_path_factory.mktemp("history") / "run"
    kept = "--config.checkpoint.every_steps=4", "--config.checkpoint.keep=9"
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *kept]) == 0
    return workdir


def result(done) -> dict:
    assert done.code == 0 and done.err == "", done.err
    return json.loads(done.out)


def test_domains_are_files_and_splits_and_add_up(lm, finished, texts):
    data = ["--data", "validation", texts / "folder", texts / "c.txt"]
    whole = result(lm("eval", "--checkpoint", finished, *data, "--json"))
    parts = result(lm("eval", "--checkpoint", finished, *data, "--by=domain,position", "--json"))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5) and parts["bytes"] == whole["bytes"]
    domains = parts["by_domain"]
    assert list(domains) == ["validation", "a.txt", "b.txt", str(texts / "c.txt")]
    assert domains["a.txt"]["bytes"] == 1500 and domains["b.txt"]["bytes"] == 1000
    assert sum(own["tokens"] for own in domains.values()) == whole["tokens"]
    assert domains[str(texts / "c.txt")]["loss"] > domains["a.txt"]["loss"], "never seen in training"
    alone = result(lm("eval", "--checkpoint", finished, "--data", texts / "folder" / "b.txt", "--json"))
    assert domains["b.txt"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert [(row["first"], row["last"]) for row in parts["by_position"]][-2:] == [(8, 15), (16, 31)]
    assert sum(row["tokens"] for row in parts["by_position"]) == whole["tokens"]
    out = lm("eval", "--checkpoint", finished, *data, "--by=domain,position").out
    assert "a.txt" in out and "16 to 31" in out and "stride 16" in out


def test_all_steps_give_a_line_each_and_a_curve(lm, history, tmp_path):
    curve = tmp_path / "curve.svg"
    done = lm("eval", "--checkpoint", history, "--all-steps", "--out", curve)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["step", "4", "8", "12", "16", "20"]
    assert curve.read_text().startswith("<svg")
    figures = result(lm("eval", "--checkpoint", history, "--all-steps", "--json"))
    assert len({row["loss"] for row in figures["steps"]}) == 5 and figures["stride"] == 16
    for row in figures["steps"][1], figures["steps"][-1]:
        alone = result(lm("eval", "--checkpoint", history, "--step", row["step"], "--json"))
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert f"step {figures['best']}'s" in lines[-1]


def test_all_steps_compile_once_and_pass_over_a_damaged_checkpoint(lm, run, monkeypatch):
    import lm.evaluate as room

    made = []
    original = room.LossEvaluator
    monkeypatch.setattr(room, "LossEvaluator", lambda local: made.append(local) or original(local))
    assert len(result(lm("eval", "--checkpoint", run, "--all-steps", "--json"))["steps"]) == 2 and len(made) == 1
    (run / "checkpoints" / "20" / "_CHECKPOINT_METADATA").unlink()
    done = lm("eval", "--checkpoint", run, "--all-steps", "--json")
    assert [row["step"] for row in json.loads(done.out)["steps"]] == [16]
    assert "passing over a damaged checkpoint" in done.err


def test_a_later_step_is_better_and_a_step_is_no_better_than_itself(lm, history):
    steps = history / "checkpoints"
    row = result(lm("eval", "--compare", steps / "4", history, "--json"))["compared"][0]
    assert row["better"] == "B" and row["difference"] < 0 and row["p"] < 0.05 and row["low"] < row["high"] < 0
    assert row["b"] == pytest.approx(result(lm("eval", "--checkpoint", history, "--json"))["bits_per_byte"], rel=1e-5)
    done = lm("eval", "--compare", steps / "20", history)
    assert done.code == 0 and "no difference: the same in all" in done.out


def test_all_steps_of_the_folder_of_steps_but_not_of_one(lm, run):
    assert len(result(lm("eval", "--checkpoint", run / "checkpoints", "--all-steps", "--json"))["steps"]) == 2
    refused = lm("eval", "--checkpoint", run / "checkpoints" / "20", "--all-steps").refusal(2)
    assert "is one step; give the run" in refused


def test_all_steps_pass_over_a_step_that_is_removed_meanwhile(lm, run, monkeypatch):
    listed = [[16, 18, 20]]
    real = layout.finished_steps
    monkeypatch.setattr(layout, "finished_steps", lambda folder: listed.pop() if listed else real(folder))
    done = lm("eval", "--checkpoint", run, "--all-steps", "--json")
    assert done.code == 0, done.err
    assert [row["step"] for row in json.loads(done.out)["steps"]] == [16, 20]
    assert "step 18, which was removed" in done.err


def write_items(path, right, extra=()):
    records = [{"id": str(i), "correct": int(value), "correct_norm": int(value)} for i, value in enumerate(right)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, *extra]))


def test_questions_are_compared_one_by_one(lm, tmp_path):
    half = [i % 2 for i in range(100)]
    write_items(tmp_path / "a" / "piqa-00aa11bb.jsonl", half)
    write_items(tmp_path / "b" / "piqa-99ff00cc.jsonl", [1] * 30 + half[30:])
    write_items(tmp_path / "b" / "other.jsonl", half)
    rows = result(lm("eval", "--compare", tmp_path / "a", tmp_path / "b", "--json"))["compared"]
    assert [row["of"] for row in rows] == ["piqa", "piqa, norm"]
    assert rows[0]["better"] == "B" and rows[0]["differing"] == 15 and rows[0]["difference"] == pytest.approx(0.15)
    files = [tmp_path / name for name in ("a/piqa-00aa11bb.jsonl", "b/other.jsonl")]
    assert "no difference" in lm("eval", "--compare", *files).out


def test_what_the_right_answers_cost_is_compared_where_it_was_kept(lm, tmp_path):
    for name, nats in (("a", 2.0), ("b", 1.9)):
        records = [
            {"id": str(i), "correct": 1, "gold": 1, "gold_bytes": 4 + i % 3, "loglikelihoods": [-9.0, -nats - i % 5]}
            for i in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = result(lm("eval", "--compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--json"))["compared"]
    assert [(row["unit"], row["better"]) for row in rows] == [
        ("accuracy", None),
        ("bits per byte of the right answers", "B"),
    ]
    assert rows[1]["difference"] == pytest.approx(-0.1 / 5 / math.log(2))


def test_two_files_of_one_task_and_two_tasks_are_not_compared(lm, tmp_path):
    write_items(tmp_path / "a" / "piqa-00aa11bb.jsonl", [1, 0, 1])
    write_items(tmp_path / "a" / "piqa-22aa11bb.jsonl", [1, 1, 1])
    write_items(tmp_path / "b" / "piqa-99ff00cc.jsonl", [1, 0, 1])
    assert "give the file" in lm("eval", "--compare", tmp_path / "a", tmp_path / "b").refusal(2)
    files = [tmp_path / "gold0.jsonl", tmp_path / "gold1.jsonl"]
    for gold, path in enumerate(files):
        records = [{"id": str(i), "correct": 1, "gold": gold} for i in range(3)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "these are two tasks" in lm("eval", "--compare", *files).refusal(2)


def test_items_on_an_object_store_are_compared_by_file_and_by_folder(lm, tmp_path):
    stores = ["memory://compare-a", "memory://compare-b"]
    for store, change in zip(stores, (0, 1), strict=True):
        for _ in range(2):  # a part each
            log = LineLog(f"{store}/piqa-0123abcd.jsonl")
            first = len(log.read())
            for i in range(first, first + 20):
                log.append(json.dumps({"id": str(i), "correct": int(i % 2 or change)}))
            log.flush()
    for paths in stores, [f"{store}/piqa-0123abcd.jsonl" for store in stores]:
        (row,) = result(lm("eval", "--compare", *paths, "--json"))["compared"]
        assert (row["of"], row["items"], row["differing"]) == ("piqa", 40, 20)
    write_items(tmp_path / "a.jsonl", [1, 0, 1])
    assert "is no file" in lm("eval", "--compare", tmp_path / "a.jsonl", tmp_path / "no.jsonl").refusal(2)


def test_scores_that_are_not_finite_are_not_compared(lm, tmp_path):
    for name, nats in (("a", -2.0), ("b", math.nan)):
        records = [
            {"id": str(i), "correct": 0, "gold": 0, "gold_bytes": 4, "loglikelihoods": [nats, -1.0]} for i in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    refused = lm("eval", "--compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl").refusal(1)
    assert 'b.jsonl" cannot be compared' in refused and "not finite" in refused


def test_json_has_no_infinity(lm, tmp_path):
    write_items(tmp_path / "a.jsonl", [0, 0, 0])
    write_items(tmp_path / "b.jsonl", [1, 1, 1])
    done = lm("eval", "--compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--json")
    row = json.loads(done.out, parse_constant=pytest.fail)["compared"][0]
    assert row["low"] is None and row["better"] is None


def parts_of(documents: int, nats: float = 100.0) -> Breakdown:
    sums = np.tile([nats, 100.0, 100.0], (documents, 1))
    return Breakdown(sums, sums, sums[:1])


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        ((parts_of(40), parts_of(30)), 2, "did not score the same documents of validation (40 and 30)"),
        ((parts_of(1), parts_of(1)), 2, "validation is one window"),
        ((parts_of(40), parts_of(40, math.nan)), 1, 'checkpoints/20" cannot be compared: its loss is not finite'),
    ],
)
def test_losses_that_cannot_be_compared_are_refused(lm, finished, monkeypatch, parts, code, says):
    made = iter(parts)
    monkeypatch.setattr(breakdown, "break_down", lambda *_: next(made))
    assert says in lm("eval", "--compare", finished, finished / "checkpoints" / "20").refusal(code)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--by=page"], "--by page"),
        (["--out=x.svg"], "--all-steps"),
        (["--all-steps", "--out=x.png"], ".svg"),
        (["--all-steps", "--step=16"], "takes no --step"),
    ],
)
def test_options_that_do_not_fit_are_refused(lm, finished, arguments, says):
    assert says in lm("eval", "--checkpoint", finished, *arguments).refusal(2)


def test_comparisons_that_make_no_sense_are_refused(lm, finished, tmp_path):
    write_items(tmp_path / "a.jsonl", [1, 0, 1])
    write_items(tmp_path / "b.jsonl", [1, 0, 1, 1])
    compare = lambda *paths: lm("eval", "--compare", *paths).refusal(2)  # noqa: E731
    assert "did not answer the same questions" in compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert "both must be runs" in compare(finished, tmp_path / "a.jsonl")
    assert "no run in" in compare(finished, tmp_path / "nothing")
    assert "no checkpoint of step 3" in compare(finished, finished / "checkpoints" / "3")
    assert "takes no --checkpoint" in lm("eval", "--checkpoint", finished, "--compare", finished, finished).refusal(2)
    assert "give --checkpoint" in lm("eval").refusal(2)
    for option in ["--all-steps"], ["--out=x.svg"]:
        assert "takes no --all-steps" in lm("eval", "--compare", finished, finished, *option).refusal(2)
    for option in ["--stride=4"], ["--data", "test"], ["--weights=params"]:
        files = [tmp_path / "a.jsonl", tmp_path / "a.jsonl"]
        assert "belongs to runs" in lm("eval", "--compare", *files, *option).refusal(2)
