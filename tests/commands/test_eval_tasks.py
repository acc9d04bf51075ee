"""`lm eval --tasks`: its table and files, a signal and the same command again, and what it refuses."""

import json
import os
import signal
import time

import pytest

from lm.commands import eval_tasks
from lm.evaluate import runner
from lm.evaluate.records import read_items
from lm.evaluate.score import Scorer
from tests.commands.runs import finish, records, start

pytestmark = pytest.mark.slow  # each trains a model of its own

QUESTIONS = [
    {"context": f"the word {i}", "choices": [f"is {i * 7}", "is another", "abc dej"], "gold": i % 3} for i in range(40)
]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "blimp").mkdir(parents=True)
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    pairs = [{"sentence_good": f"abc dej {i}", "sentence_bad": f"dej {i} abc"} for i in range(5)]
    (folder / "blimp" / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


def test_tasks_give_a_table_and_one_json_object_and_files_in_the_harnesss_shape(lm, run, data):
    arguments = ("eval", "--checkpoint", run, "--tasks", "piqa,blimp", "--tasks-data", data)
    assert "CORE" not in lm(*arguments).out  # which asks PIQA with 10 worked examples
    arguments = (*arguments, "--num-fewshot", "core")
    shown = lm(*arguments)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].split() == ["task", "items", "acc", "acc_norm", "centred", "bits/byte"]
    assert [line.split()[0] for line in lines[1:3]] == ["piqa", "blimp_words"]
    assert lines[3].startswith("CORE of 1 of its 22 tasks: ")
    assert "piqa: 40 of 40 items" in shown.err
    again = lm(*arguments, "--json")
    assert "40 of 40 items are kept" in again.err
    result = json.loads(again.out)
    assert result["step"] == 20
    figures = result["tasks"]["piqa"]
    assert result["core"]["tasks"] == ["piqa"]
    items = read_items(figures["file"])
    assert figures["acc"] == sum(item["correct"] for item in items.values()) / 40
    (path,) = (run / "evals" / "20-params").glob("piqa-10shot-*.json")
    own = json.loads(path.read_text())
    assert own["results"]["piqa"]["acc,none"] == figures["acc"]
    assert own["n-samples"]["piqa"] == {"original": 40, "effective": 40}


def test_a_signal_keeps_what_is_done_and_the_same_command_continues(lm, run, data, monkeypatch):
    arguments = ("eval", "--checkpoint", run, "--tasks", "piqa", "--tasks-data", data, "--json")
    monkeypatch.setattr(runner, "_ITEMS", 9)  # else all of them are one batch
    whole = json.loads(lm(*arguments, "--again").out)["tasks"]["piqa"]
    stream, scored = Scorer.stream, []

    def interrupted(self, params, requests):
        for batch in stream(self, params, requests):
            yield batch
            if scored == [9]:
                os.kill(os.getpid(), signal.SIGINT)
            scored.append(len(requests) // 3)

    monkeypatch.setattr(Scorer, "stream", interrupted)
    stopped = lm(*arguments, "--again")
    assert stopped.code == 42, stopped.err
    assert "stopped by SIGINT" in stopped.err and "run the same command to continue" in stopped.err
    kept = len(read_items(whole["file"]))
    assert kept == 18
    monkeypatch.setattr(Scorer, "stream", stream)
    continued = lm(*arguments)
    assert f"{kept} of 40 items are kept" in continued.err
    figures = json.loads(continued.out)["tasks"]["piqa"]
    # Not bit for bit: other requests share the rows.
    assert figures == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in whole.items()
    }


def test_worked_examples_a_limit_and_a_first_token_are_other_questions(lm, run, data):
    arguments = ("eval", "--checkpoint", run, "--tasks", data / "piqa.jsonl", "--json")
    plain = json.loads(lm(*arguments).out)["tasks"]["piqa"]
    shots = json.loads(lm(*arguments, "--num-fewshot", 2).out)["tasks"]["piqa"]
    bos = json.loads(lm(*arguments, "--add-bos").out)["tasks"]["piqa"]
    assert len({plain["file"], shots["file"], bos["file"]}) == 3
    assert len({plain["bits_per_byte"], shots["bits_per_byte"], bos["bits_per_byte"]}) == 3
    limited = json.loads(lm(*arguments, "--limit", 7).out)["tasks"]["piqa"]
    assert limited["items"] == 7
    assert limited["file"] == plain["file"]
    assert json.loads(lm(*arguments, "--limit", 7, "--again").out)["tasks"]["piqa"]["items"] == 7
    assert len(read_items(plain["file"])) == 40
    (path,) = (run / "evals" / "20-params").glob(os.path.basename(plain["file"]).replace(".jsonl", ".json"))
    whole = json.loads(path.read_text())
    assert whole["n-samples"]["piqa"]["effective"] == 40


def test_a_step_that_was_saved_again_is_asked_again(lm, run, data, monkeypatch):
    arguments = ("eval", "--checkpoint", run, "--tasks", "blimp", "--tasks-data", data, "--json")
    first = json.loads(lm(*arguments).out)
    assert all(len(digest) == 64 for digest in first["digests"])
    monkeypatch.setattr(eval_tasks, "_digests", lambda *_: ["another save's"])
    assert json.loads(lm(*arguments).out)["tasks"]["blimp_words"]["file"] != first["tasks"]["blimp_words"]["file"]


REFUSED = {
    "no task": (["--tasks", "copa", "--tasks-data", "DATA"], "no such file below"),
    "no folder": (["--tasks", "piqa"], "give --tasks-data DIR"),
    "not without": (["--limit", "3"], "--limit belongs to --tasks"),
    "windows": (["--tasks", "piqa", "--tasks-data", "DATA", "--stride", "3"], "belong to --data"),
    "breakdown": (["--tasks", "piqa", "--tasks-data", "DATA", "--by", "domain"], "takes no --data or --by"),
    "text": (["--tasks", "piqa", "--tasks-data", "DATA", "--data", "test"], "takes no --data or --by"),
    "twice": (["--tasks", "piqa,piqa", "--tasks-data", "DATA"], "two tasks have the same name"),
    "shots": (["--tasks", "piqa", "--tasks-data", "DATA", "--num-fewshot", "40"], "has 40 items"),
    "harness": (["--tasks", "piqa", "--include-path", "nowhere"], "is not a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_one_line(lm, finished, data, name):
    arguments, message = REFUSED[name]
    arguments = [str(data) if argument == "DATA" else argument for argument in arguments]
    assert message in lm("eval", "--checkpoint", finished, *arguments).refusal(2)


def test_a_run_scores_tasks_while_it_trains(train, tmp_path, data):
    workdir = tmp_path / "run"
    tasks = f"('{data / 'piqa.jsonl'}', '{data / 'blimp' / 'words.jsonl'}')"
    done = train(workdir, f"--config.eval.tasks={tasks}", "--config.eval.task_items=10")
    assert done.code == 0, done.err
    written = records(workdir, "task")
    assert [(r["step"], r["split"], r["items"]) for r in written] == [
        (step, task, items) for step in (10, 20) for task, items in (("piqa", 10), ("words", 5))
    ]
    assert all(0 <= r["acc"] <= 1 and r["bits_per_byte"] > 0 for r in written)
    assert "piqa: acc" in done.err + done.out
    assert train(tmp_path / "other", "--config.eval.tasks=('nowhere.jsonl',)").code == 2


def test_tasks_that_cannot_be_scored_are_refused_before_training(train, tmp_path, data):
    long = {"id": "q9", "context": "the word", "choices": ["is", "abc dej " * 100], "gold": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n")
    refused = train(tmp_path / "run", f"--config.eval.tasks=('{tmp_path / 'long.jsonl'}',)")
    assert refused.code == 2 and "config.eval.tasks: long, item q9: a continuation has" in refused.err
    assert not records(tmp_path / "run")
    (tmp_path / "piqa.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    both = f"('{tmp_path / 'piqa.jsonl'}', '{data / 'piqa.jsonl'}')"
    refused = train(tmp_path / "run", f"--config.eval.tasks={both}")
    assert refused.code == 2 and "two tasks have the same name" in refused.err


@pytest.mark.slow
@pytest.mark.real_data
def test_hellaswag_is_stopped_by_ctrl_c_and_continued(real_data, run):
    arguments = ("eval", "--checkpoint", run, "--tasks", "hellaswag", "--tasks-data", os.path.join(real_data, "eval"))
    arguments = (*arguments, "--limit", 2500, "--sequence-length", 512, "--json")
    process = start(*arguments)
    deadline = time.monotonic() + 200
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not any(p.stat().st_size for p in run.glob("evals/*/hellaswag-*.jsonl"))
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (42, ""), err
    (path,) = run.glob("evals/*/hellaswag-*.jsonl")
    kept = len(read_items(str(path)))
    assert 0 < kept < 2500
    assert f"{kept} of 2500 items of hellaswag are kept" in err
    code, out, err = finish(start(*arguments))
    assert code == 0, err
    assert f"{kept} of 2500 items are kept from an earlier run" in err
    figures = json.loads(out)["tasks"]["hellaswag"]
    items = read_items(figures["file"])
    assert sorted(items, key=int) == [str(i) for i in range(2500)]
    assert figures["acc"] == pytest.approx(sum(item["correct"] for item in items.values()) / 2500)
