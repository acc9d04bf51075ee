"""`lm train`: what a run's folder holds, finished runs, starting from another run, and signals."""

import json
import math

import pytest

from lm.__main__ import main
from tests.commands.conftest import STEPS
from tests.commands.runs import files, records


def test_a_runs_folder_holds_what_is_promised(finished):
    info = json.loads((finished / "config.json").read_text())
    assert len(info["fingerprint"]) == 64 and int(info["fingerprint"], 16)
    assert info["packages"]["jax"] and info["packages"]["flax"] and "git_commit" in info
    assert info["config"]["model"]["d_model"] == 32 and info["config"]["model"]["vocab_size"] == 384
    assert len(info["data"]["manifest_hash"]) == 64
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["16", "20"]
    assert "<html" in (finished / "report.html").read_text()
    assert "step 20/20" in (finished / "log.txt").read_text()
    assert (finished / "samples" / "20.txt").read_text().startswith("abc")
    assert not (finished / "events").exists()  # log.tensorboard is off


def test_every_metrics_line_has_the_promised_keys(finished):
    train = records(finished)
    assert [r["step"] for r in train] == list(range(1, STEPS + 1))
    promised = {"step", "loss", "bits_per_byte", "tokens_per_second", "mfu", "seconds"}
    assert all(promised <= set(r) for r in train)
    assert all(r["mfu"] is None for r in train)  # the peak of this CPU is not known: null, never 0
    assert train[0]["tokens_per_second"] is None and train[-1]["tokens_per_second"] > 0
    assert [r["tokens"] for r in train] == [16 * 32 * r["step"] for r in train]
    assert [r["seconds"] for r in train] == sorted(r["seconds"] for r in train)
    assert train[-1]["loss"] < train[0]["loss"] - 1
    assert [r["step"] for r in records(finished, "eval")] == [10, 20]


def test_a_runs_timeline_accounts_for_all_of_its_time(finished):
    found = [json.loads(line) for line in (finished / "timeline.jsonl").read_text().splitlines()]
    first, last = found[0], found[-1]
    assert first["run"] == json.loads((finished / "config.json").read_text())["fingerprint"]
    assert (last["step"], last["end"]) == (STEPS, "done")
    assert all(seconds > 0 for seconds in last["seconds"].values())
    assert sum(last["seconds"].values()) == pytest.approx(last["time"] - last["attempt"], abs=0.01)
    assert {8, 16, 20} <= {record["step"] for record in found}  # where it saved
    assert "Where the time went" in (finished / "report.html").read_text()


def test_training_a_finished_run_again_gives_the_same_result_and_changes_no_metrics(train, run):
    before = files(run)
    done = train(run, "--json", "--config.log.sample_prompts=('abc',)")
    assert done.code == 0, done.err
    assert f"resumed at step {STEPS} of {STEPS}" in done.err
    result = json.loads(done.out)
    evaluated, trained = records(run, "eval")[-1], records(run)[-1]
    assert result["step"] == STEPS
    assert [result[key] for key in ("loss", "bits_per_byte", "perplexity")] == [
        evaluated[key] for key in ("loss", "bits_per_byte", "perplexity")
    ]
    assert result["train_loss"] == trained["loss"] and result["tokens"] == trained["tokens"]
    assert result["attempts"] == 1 and 0 < result["goodput"] < 1  # the second start had nothing to do
    assert result["mfu"] is None and result["report"] == str(run / "report.html")
    assert result["sample"].startswith("abc")
    after = files(run)
    for name in before:
        if name.startswith(("metrics", "checkpoints/", "samples/", "tokenizer")):
            assert after[name] == before[name], name


def test_stdout_carries_the_result_alone(train, run):
    done = train(run)
    lines = done.out.splitlines()
    assert lines[-2].startswith("validation bits per byte: ") and lines[-1] == f"report: {run / 'report.html'}"
    assert "step" in done.err and "step 20/20" not in done.out


@pytest.fixture(scope="module")
def started_from(config, finished, tmp_path_factory):
    """A run that began from the finished one, in a folder where an earlier start had failed."""
    workdir = tmp_path_factory.mktemp("started_from") / "run"
    command = ["train", f"--config={config}", f"--workdir={workdir}", f"--config.init_from={finished}"]
    assert main([*command, "--config.model.d_model=64"]) == 2
    assert (workdir / "config.json").exists()
    assert main([*command, "--config.optimizer.num_steps=3", "--config.log.tensorboard=true"]) == 0
    return workdir


def test_init_from_starts_from_the_other_runs_parameters(started_from, finished):
    first, last, fresh = records(started_from)[0], records(finished)[-1], math.log(384)
    assert abs(first["loss"] - last["loss"]) < 0.2 * (fresh - last["loss"])
    ours, theirs = (json.loads((f / "config.json").read_text())["fingerprint"] for f in (started_from, finished))
    assert ours != theirs


def test_a_start_that_failed_before_its_first_step_does_not_claim_the_folder(started_from):
    assert json.loads((started_from / "config.json").read_text())["config"]["model"]["d_model"] == 32


def test_tensorboard_events_are_written_when_asked(started_from):
    assert list((started_from / "events").iterdir())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ("--config.model.d_model=64", "params/embed/tokens/embedding"),
        ("--config.model.qk_norm=true", "layers/attention/key_norm/scale"),
        ("--config.model.tie_embeddings=false", "head/kernel"),
    ],
)
def test_init_from_another_shape_is_refused_with_the_arrays_path(train, finished, tmp_path, change, path):
    done = train(tmp_path / "run", f"--config.init_from={finished}", change)
    assert done.code == 2 and "Traceback" not in done.err
    (line,) = (line for line in done.err.splitlines() if line.startswith("lm: "))
    assert path in line and str(finished) in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


STOPPING_SOURCE = """
import os, signal
from lm.data.sources import Document

def documents(config):
    yield Document("some words " * 50, "0")
    os.kill(os.getpid(), signal.{name})
    yield Document("more words " * 50, "1")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_data_preparation_exits_42(lm, config, tmp_path, name):
    (tmp_path / f"stopping_{name.lower()}.py").write_text(STOPPING_SOURCE.format(name=name))
    own = tmp_path / "own.py"
    own.write_text(config.read_text())
    done = lm(
        "train",
        f"--config={own}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source=stopping_{name.lower()}:documents",
    )
    assert done.code == 42, done.err
    assert done.err.splitlines()[-1].startswith(f"lm: stopped by {name} ") and "Traceback" not in done.err
    assert done.out == "" and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_signal_that_a_library_swallowed_still_stops_the_run_after_its_first_step(lm, config, tmp_path):
    own = tmp_path / "own.py"
    swallow = "    try:\n        import os; os.kill(os.getpid(), 15); [None for _ in range(9)]\n    except Exception:\n"
    own.write_text(config.read_text().replace("    return config", swallow + "        pass\n    return config"))
    done = lm("train", f"--config={own}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 42, done.err
    assert done.err.splitlines()[-1].startswith("lm: stopped by SIGTERM at step 1, saved")
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
