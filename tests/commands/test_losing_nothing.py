"""What goes wrong in the middle of a run loses nothing, and what would be silently wrong is refused."""

import json

import pytest

from lm.checkpoint.layout import finished_steps, unfinished
from tests.commands.runs import write_config, write_text


@pytest.fixture
def train(lm, config, tmp_path):
    def run(*overrides: str, workdir=None):
        return lm("train", f"--config={config}", f"--workdir={workdir or tmp_path / 'run'}", *overrides)

    return run


def steps_in(tmp_path) -> list[int]:
    assert unfinished(str(tmp_path / "run" / "checkpoints")) == []
    return finished_steps(str(tmp_path / "run" / "checkpoints"))


def exploding(model, params, batch, **kwargs):
    """An objective whose gradient is infinite from some loss on, long before the loss itself is."""
    import jax.numpy as jnp

    from lm.objectives import next_token

    loss, sums = next_token(model, params, batch, **kwargs)
    return loss * jnp.where(sums["nll"] / sums["tokens"] < 4.5, jnp.inf, 1.0), sums


def test_a_diverged_run_ends_in_one_line_and_saves_no_broken_parameters(train, tmp_path):
    done = train("--config.objective=tests.commands.test_losing_nothing:exploding", "--config.checkpoint.every_steps=1")
    assert done.code == 1
    assert "grad_norm is" in done.err.splitlines()[-1]
    assert "another --workdir" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["nonfinite"]
    assert steps_in(tmp_path) == [records[-1]["step"] - 2, records[-1]["step"] - 1]


def test_a_hook_that_fails_leaves_a_checkpoint(train, tmp_path, monkeypatch):
    import lm.evaluate.loss

    def fail(*_):
        raise OSError(28, "No space left on device", "validation")

    monkeypatch.setattr(lm.evaluate.loss, "summarize", fail)
    done = train()
    assert done.code == 1
    assert "No space left on device" in done.err.splitlines()[-1]
    assert steps_in(tmp_path)[-1] == 10, "evaluation came at step 10"


@pytest.mark.slow
def test_samples_stay_within_learned_positions(train, tmp_path):
    done = train(
        "--config.model.positions=learned", "--config.log.sample_prompts=('abc def',)", "--config.log.sample_tokens=500"
    )
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "samples" / "20.txt").read_text().startswith("abc def")


def test_parameters_of_another_tokenizer_are_refused(lm, finished, tmp_path):
    text = write_text(tmp_path / "other.txt", words=5000)
    text.write_text(text.read_text().translate(str.maketrans("abcdefghij", "klmnopqrst")))
    config = write_config(tmp_path / "other.py", text, num_steps=20)
    done = lm("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.init_from={finished}")
    assert done.code == 2
    assert "another tokenizer" in done.err.splitlines()[-1]
    tokenizer = finished / "tokenizer.tiktoken"
    assert str(tokenizer) in done.err
    again = lm(
        "train", f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.init_from={finished}",
        f"--config.data.tokenizer={tokenizer}",
    )  # fmt: skip
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "no_such.module:name"),
        ("model.block", "lm.model.block:NoBlock"),
        ("objective", "lm.axes:PARAMETERS"),
    ],
)
def test_code_that_is_not_there_is_refused_before_anything_is_made(train, tmp_path, field, value):
    done = train(f"--config.{field}={value}")
    assert f"config.{field}" in done.refusal(2)
    assert not (tmp_path / "run").exists()


def test_code_beside_the_config_is_found_again_by_eval(lm, corpus, tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own_block_of_test.py").write_text("from lm.model.block import Block as Own\n")
    config = write_config(tmp_path / "experiment" / "own.py", corpus, 3)
    run = tmp_path / "run"
    train = ("train", f"--config={config}", f"--workdir={run}", "--config.model.block=own_block_of_test:Own")
    assert lm(*train).code == 0
    monkeypatch.delitem(__import__("sys").modules, "own_block_of_test")
    done = lm("eval", f"--checkpoint={run}", "--json")
    assert done.code == 0, done.err


def test_a_folder_named_test_does_not_shadow_the_split(lm, finished, tmp_path, monkeypatch):
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "a.txt").write_text("not the split")
    expected = json.loads(lm("eval", f"--checkpoint={finished}", "--json").out)
    monkeypatch.chdir(tmp_path)
    assert json.loads(lm("eval", f"--checkpoint={finished}", "--json").out) == expected
    assert json.loads(lm("eval", f"--checkpoint={finished}", "--data=./validation", "--json").out)["bytes"] == 13


def test_a_config_for_many_devices_builds_its_data_anywhere(lm, config, tmp_path):
    done = lm("data", "build", f"--config={config}", f"--out={tmp_path / 'shards'}", "--config.parallel.fsdp=64")
    assert done.code == 0, done.err
    inspected = json.loads(lm("inspect", f"--config={config}", "--config.parallel.fsdp=64", "--json").out)
    assert inspected["parameters"] > 0


def test_a_second_process_in_the_same_folder_is_refused(train, tmp_path):
    from lm.storage import locked

    (tmp_path / "run").mkdir()
    with locked(str(tmp_path / "run")):
        assert "another process" in train().refusal(2)
    assert train("--config.optimizer.num_steps=3").code == 0


@pytest.mark.parametrize("workdir", ["memory://run", "abfs://box/run"])
def test_a_store_that_checkpoints_cannot_be_written_to_is_refused(train, workdir):
    assert "gs:// or s3://" in train(workdir=workdir).refusal(2)
