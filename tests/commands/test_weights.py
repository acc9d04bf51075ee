"""`--weights` and `--average`: which parameters of a run `lm eval` and `lm generate` use."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lm.checkpoint.average import restore_average
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints
from lm.commands.opened import open_run
from lm.errors import UsageError
from tests.commands.runs import records


@pytest.fixture(scope="module")
def averaged(finished, tmp_path_factory) -> pathlib.Path:
    """A run with a moving average and the checkpoints of steps 8, 16 and 20, made out of a finished one."""
    workdir = pathlib.Path(shutil.copytree(finished, tmp_path_factory.mktemp("averaged") / "run"))
    info = json.loads((workdir / "config.json").read_text())
    info["config"]["optimizer"]["ema_decay"] = 0.9
    (workdir / "config.json").write_text(json.dumps(info))
    params = jax.device_get(open_run(str(finished)).params)
    shutil.rmtree(workdir / "checkpoints")
    checkpoints = Checkpoints(str(workdir / "checkpoints"), keep=3)
    for step in (8, 16, 20):
        waves = jax.tree.map(lambda p: np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape) / 1000, params)
        above, below = (jax.tree.map(lambda p, w, k=k: p + k * w, params, waves) for k in (step, -step))
        items = {"params": above, "extra": {"ema": below, "loss_scale": {"scale": np.float32(2)}}}
        checkpoints.save(step, items, data={}, meta={"step": step})
    checkpoints.close()
    return workdir


def read(workdir, step: int, item: str = "params", prefix: str = "") -> dict[str, np.ndarray]:
    reader = CheckpointReader(str(workdir / "checkpoints" / str(step)))
    return {p.removeprefix(prefix): reader.read(item, p) for p in reader.leaves(item) if p.startswith(prefix)}


def flat(tree) -> dict[str, np.ndarray]:
    named = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in named}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_a_run_is_opened_with_its_moving_average_unless_its_parameters_are_asked_for(averaged):
    opened = open_run(str(averaged))
    assert (opened.weights, opened.step) == ("ema", 20)
    assert_same(flat(opened.params), read(averaged, 20, "extra", "ema/"))
    plain = open_run(str(averaged), 16, weights="params")
    assert (plain.weights, plain.step) == ("params", 16)
    assert_same(flat(plain.params), read(averaged, 16))
    assert any(np.any(a != b) for a, b in zip(flat(opened.params).values(), flat(plain.params).values(), strict=True))


def test_the_average_is_the_mean_of_the_newest_checkpoints_up_to_the_step(averaged):
    for step, count, steps in ((None, 2, (16, 20)), (None, 3, (8, 16, 20)), (16, 2, (8, 16))):
        opened = open_run(str(averaged), step, average=count)
        assert (opened.weights, opened.averaged, opened.step) == ("average", steps, steps[-1])
        parts = [read(averaged, s) for s in steps]
        assert_same(flat(opened.params), {name: sum(p[name] for p in parts) / count for name in parts[0]})


def test_eval_and_generate_say_which_weights_they_used(averaged, lm):
    window = "--stride", 32, "--max-tokens", 64
    figures = json.loads(lm("eval", "--checkpoint", averaged, *window, "--json").out)
    assert (figures["weights"], figures["step"]) == ("ema", 20)
    assert "average of checkpoints 16, 20" in lm("eval", "--checkpoint", averaged, *window, "--average", 2).out
    done = lm("generate", "--checkpoint", averaged, "--weights", "params", "--max-new-tokens", 2, "--json")
    assert json.loads(done.out)["weights"] == "params"


def test_weights_that_a_run_does_not_have_are_refused(averaged, finished, lm):
    line = lm("eval", "--checkpoint", finished, "--weights", "ema").refusal(2)
    assert "keeps no moving average (config.optimizer.ema_decay)" in line
    line = lm("generate", "--checkpoint", averaged, "--average", 4).refusal(2)
    assert "--average 4:" in line and "has 3 checkpoints that can be read" in line and "checkpoint.keep" in line
    line = lm("eval", "--checkpoint", averaged, "--average", 2, "--step", 8).refusal(2)
    assert "has 1 checkpoints up to step 8" in line
    line = lm("eval", "--checkpoint", averaged, "--average", 2, "--step", 9).refusal(2)
    assert "no checkpoint of step 9" in line and "[8, 16, 20]" in line
    assert "leave out --weights ema" in lm(
        "eval", "--checkpoint", averaged, "--average", 2, "--weights", "ema"
    ).refusal(2)
    assert "--average 0: expected 1 or more" in lm("eval", "--checkpoint", averaged, "--average", 0).refusal(2)


def test_a_damaged_checkpoint_is_passed_over_with_a_line(averaged, tmp_path):
    run, lines = pathlib.Path(shutil.copytree(averaged, tmp_path / "run")), []
    (run / "checkpoints" / "16" / "_CHECKPOINT_METADATA").unlink()
    checkpoints = Checkpoints(str(run / "checkpoints"))
    params = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
        open_run(str(averaged), weights="params").params,
    )
    assert restore_average(checkpoints, params, 2, warn=lines.append)[1] == (8, 20)
    assert len(lines) == 1 and "damaged" in lines[0]
    with pytest.raises(UsageError, match="has 2 checkpoints"):
        restore_average(checkpoints, params, 3, warn=lines.append)


@pytest.mark.slow
def test_a_run_validates_with_its_moving_average_and_eval_repeats_the_figure(train, lm, tmp_path):
    options = "--config.optimizer.ema_decay=0.9", "--config.optimizer.schedule=constant"
    assert train(tmp_path / "run", *options).code == 0
    validated = records(tmp_path / "run", "eval")[-1]
    window = "--stride", 32, "--max-tokens", 512, "--json"
    again, plain = (
        json.loads(lm("eval", "--checkpoint", tmp_path / "run", "--weights", weights, *window).out)
        for weights in ("ema", "params")
    )
    assert again["loss"] == pytest.approx(validated["loss"], rel=1e-5)
    assert abs(plain["loss"] - validated["loss"]) > 1e-3
