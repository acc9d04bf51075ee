"""fp16 with loss scaling, stochastic rounding, the moving average and the z-loss, together in one step and one run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.capabilities import Capabilities
from lm.config import apply_overrides, default
from lm.data.stages import Stages
from lm.errors import ConfigError, LmError, Preempted
from lm.kernels.cross_entropy import cross_entropy
from lm.model import Transformer
from lm.objectives import next_token
from lm.resolve import resolve
from lm.storage import make_folder
from lm.train import loss_scale
from lm.train.interrupts import Interrupts
from lm.train.loop import Hook, train
from tests.train.common import B, T, built_step, fake_batch, mesh_of, numpy_batch, run_steps, scalars, small_config

EVERYTHING = {
    "model.num_layers": "1",
    "precision.compute": "float16",
    "precision.parameters": "bfloat16",
    "precision.stochastic_rounding": "True",
    "precision.loss_scale_init": str(2.0**24),  # overflows
    "optimizer.accumulation_steps": "2",
    "optimizer.ema_decay": "0.5",
    "optimizer.num_steps": "12",
    "optimizer.schedule": "constant",
    "z_loss": "1e-3",
    "log.every_steps": "1",
    "log.tensorboard": "False",
    "checkpoint.every_steps": "100",
}


def everything(**overrides: str):
    """One config for most of this file, because compiling its step is most of the time that the file takes."""
    return small_config(**(EVERYTHING | overrides))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@functools.cache
def steps(number: int = 6):
    """The states (on the host) and metrics of the first steps; before the first, the initialization."""
    config = everything()
    built = built_step(config)
    state, states, metrics = built.init(), [], []
    for step in range(number):
        states.append(jax.device_get(state))
        state, values = built.step(state, fake_batch(built.mesh, 0, 2), scalars(built, step, config))
        metrics.append(jax.device_get(values))
    assert built.step._cache_size() == 1
    return [*states, jax.device_get(state)], metrics


@functools.cache
def largest_scale() -> float:
    """The scale of the first step that was not skipped."""
    return next(float(m["loss_scale"]) for m in steps()[1] if np.isfinite(m["grad_norm"]))


def test_a_step_that_overflows_is_skipped_and_counted_and_halves_the_scale():
    states, metrics = steps()
    for number, (before, after, values) in enumerate(zip(states, states[1:], metrics, strict=False)):
        skipped = not np.isfinite(values["grad_norm"])
        assert skipped == (values["loss_scale"] > largest_scale())
        assert after.step == number + 1
        scaling, scaled = before.extra["loss_scale"], after.extra["loss_scale"]
        assert values["skipped_steps"] == scaled["skipped_steps"] == scaling["skipped_steps"] + skipped
        if skipped:
            assert np.isfinite(values["loss"])
            assert scaled["scale"] == scaling["scale"] / 2
            assert_equal(
                (before.params, before.opt_state, before.extra["ema"]),
                (after.params, after.opt_state, after.extra["ema"]),
            )
        else:
            assert scaled["scale"] >= scaling["scale"]
            assert np.any(before.params["embed"]["tokens"]["embedding"] != after.params["embed"]["tokens"]["embedding"])
    assert not np.isfinite(metrics[0]["grad_norm"]) and np.isfinite(metrics[-1]["grad_norm"])  # both were seen


def test_the_scale_doubles_after_its_interval_and_stays_between_its_bounds():
    state = loss_scale.initial(dataclasses.replace(everything().precision, loss_scale_init=4.0))
    adjusted, seen = jax.jit(loss_scale.adjusted, static_argnums=2), []
    for finite in (1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0):
        state = adjusted(state, np.bool_(finite), 3)
        seen.append(float(state["scale"]))
    assert seen == [4, 4, 8, 8, 4, 4, 4, 8, 4, 2, 1, 1, 1]
    assert int(state["skipped_steps"]) == 6
    top = {"scale": jnp.float32(loss_scale.CEILING), "good_steps": jnp.int32(0), "skipped_steps": jnp.int32(0)}
    assert adjusted(top, np.bool_(1), 1)["scale"] == loss_scale.CEILING


def test_the_moving_average_follows_its_formula_in_f32_and_is_what_is_evaluated():
    states, metrics = steps()
    average = jax.tree.map(lambda p: p.astype(np.float32), states[0].params)
    assert_equal(states[0].extra["ema"], average)
    for number, (after, values) in enumerate(zip(states[1:], metrics, strict=True)):
        if np.isfinite(values["grad_norm"]):
            d = min(0.5, (1 + number) / (10 + number))
            average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p.astype(np.float32), average, after.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.extra["ema"], average)
    built = built_step(everything())
    assert built.evaluation_params(states[-1]) is states[-1].extra["ema"]
    plain = built_step(small_config())
    assert plain.state.extra == {}
    assert plain.evaluation_params(plain.state) is plain.state.params


def test_the_moving_average_is_sharded_like_the_parameters_and_starts_from_given_ones():
    config = small_config(4, 2, **{"optimizer.ema_decay": "0.99"})
    built = built_step(config)
    assert built.mesh.shape == mesh_of(4, 2).shape
    average, params = built.state.extra["ema"], built.state.params
    assert_equal(jax.tree.map(lambda a: str(a.sharding), average), jax.tree.map(lambda a: str(a.sharding), params))
    assert any("fsdp" in str(a.sharding.spec) for a in jax.tree.leaves(average))

    given = jax.tree.map(lambda a: jax.device_put(np.full(a.shape, 0.5, a.dtype), a.sharding), params)
    state = built.init(given)
    assert_equal(state.extra["ema"], state.params)
    buffers = lambda tree: {a.addressable_data(0).unsafe_buffer_pointer() for a in jax.tree.leaves(tree)}  # noqa: E731
    assert not buffers(state.extra["ema"]) & buffers(state.params)  # the step may donate both


def test_the_z_loss_is_reported_apart_and_only_where_it_is_on():
    metrics = steps()[1][0]
    assert metrics["z_loss"] == pytest.approx(1e-3 * np.log(96) ** 2, rel=0.05)  # logits near 0
    assert metrics["loss"] == pytest.approx(np.log(96), abs=0.1)  # the plain one


def needs_no_z(model, params, batch, *, cross_entropy, grad_scale, dropout_key):
    return next_token(model, params, batch, cross_entropy=cross_entropy, grad_scale=grad_scale, dropout_key=dropout_key)


def test_an_objective_that_takes_no_z_loss_is_refused_when_it_is_on():
    config = small_config(objective="tests.train.test_precision:needs_no_z", z_loss="1e-4")
    with pytest.raises(ConfigError, match=r"config.z_loss=0.0001: the objective tests.*takes no z_loss"):
        built_step(config)


class Loader:
    """One batch, again and again."""

    manifest_hash = "0" * 64
    mixture_hash = None
    stages = Stages(((0, B, T),), T)

    def batch(self, step, rows, columns):
        return {name: a[rows][:, columns] for name, a in numpy_batch(0).items()}

    def rows_consumed(self, step):
        return step * B

    def epoch(self, step):
        return 0.0


class Quiet:
    def write(self, record):
        pass

    note = write


def with_scale(built, scale: float):
    """The same compiled step, from another `precision.loss_scale_init`."""

    def init(*args):
        state = built.init()
        start = jax.device_put(np.float32(scale), state.extra["loss_scale"]["scale"].sharding)
        return dataclasses.replace(
            state, extra={**state.extra, "loss_scale": {**state.extra["loss_scale"], "scale": start}}
        )

    return dataclasses.replace(built, init=init)


def run(config, scale: float, workdir, stop_at: int | None = None):
    """The real loop, stopped as if by a signal at the end of a step."""
    make_folder(str(workdir))
    interrupts, seen = Interrupts(), []

    def hook(step, params):
        seen.append(params)
        if step == stop_at:
            interrupts.requested = "SIGTERM"
        return []

    state = train(
        config,
        with_scale(built_step(everything()), scale),
        Loader(),
        str(workdir),
        console=Quiet(),
        hooks=[Hook(1, hook)],
        interrupts=interrupts,
    )
    assert seen[-1] is state.extra["ema"]  # what validation and samples get
    return jax.device_get(state)


def numbers(workdir) -> list[dict]:
    clocks = ("seconds", "tokens_per_second", "mfu")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in clocks} for line in lines]


def test_one_overflow_skips_exactly_one_step_and_a_restart_repeats_every_bit(tmp_path):
    start = 2 * largest_scale()
    undisturbed = run(everything(), start, tmp_path / "undisturbed")
    records = numbers(tmp_path / "undisturbed")
    assert [r["loss_scale"] for r in records] == [start] + 11 * [start / 2]
    assert [r["skipped_steps"] for r in records] == 12 * [1]
    assert [name for name, value in records[0].items() if value is None] == ["grad_norm"]
    assert all(r["grad_norm"] > 0 and r["z_loss"] > 0 for r in records[1:])

    for stop in (1, 5):  # right after the overflow, and later
        with pytest.raises(Preempted):
            run(everything(), start, tmp_path / "stopped", stop)
    assert_equal(run(everything(), start, tmp_path / "stopped"), undisturbed)
    assert numbers(tmp_path / "stopped") == records
    assert int(undisturbed.extra["loss_scale"]["skipped_steps"]) == 1
    assert int(undisturbed.extra["loss_scale"]["good_steps"]) == 11


def test_a_run_whose_scale_falls_to_its_floor_stops(tmp_path):
    config = everything(**{"optimizer.learning_rate": "1e30"})  # the first step ruins the parameters
    with pytest.raises(LmError, match="at step 5, with the loss scale at its floor. Start again"):
        run(config, 8.0, tmp_path)
    assert [r["loss_scale"] for r in numbers(tmp_path)] == [8, 8, 4, 2, 1]
    assert not (tmp_path / "checkpoints").exists()


def float8_config(**overrides: str):
    config = default()
    apply_overrides(config, [("precision.matmul", "float8"), *overrides.items()])
    return resolve(config, capabilities=Capabilities(device_kind="NVIDIA H200"))


def test_precision_that_the_device_or_the_types_cannot_have_is_refused():
    with pytest.raises(ConfigError, match=r"config.precision.matmul='float8': cpu has no float8 matmuls .*use default"):
        resolve({"precision": {"matmul": "float8"}})
    with pytest.raises(ConfigError, match=r"stochastic_rounding=True rounds bfloat16 parameters, but .*'float32'"):
        resolve({"precision": {"stochastic_rounding": True}})
    assert float8_config().precision.matmul == "float8"
    for kind in ("NVIDIA A100-SXM4-80GB", "TPU v5 lite", "TPU v6 lite"):
        assert not Capabilities(device_kind=kind).has_float8
    for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "TPU7x"):
        assert Capabilities(device_kind=kind).has_float8


def scorer(matmul: str):
    """Return `score(params, batch)` of a small model, and its initialization."""
    config = small_config(**{"model.num_layers": "1", "model.embedding_std": "0.3", "model.tie_embeddings": "False"})
    model = Transformer(config.model, dataclasses.replace(config.precision, matmul=matmul))
    options = {
        "cross_entropy": cross_entropy,
        "grad_scale": 1 / numpy_batch(0)["weights_BT"].sum(),
        "dropout_key": None,
    }
    return jax.jit(functools.partial(next_token, model, **options)), jax.jit(model.init)


def test_float8_reaches_every_linear_layer_of_a_block_and_neither_head_nor_embedding():
    score, init = scorer("float8")
    text = score.lower(jax.eval_shape(init, jax.random.key(0)), numpy_batch(0)).as_text()
    products = [line.split(": ")[-1] for line in text.splitlines() if "dot_general" in line]
    assert sum(line.count("f8E4M3FN") == 2 for line in products) == 7  # query, key, value, out; up, gate, down
    assert sum("f8" not in line for line in products) == 3  # two in attention, one in the head


@pytest.mark.slow
def test_a_small_model_in_float8_has_nearly_the_loss_of_f32():
    (score, init), (score8, _) = scorer("default"), scorer("float8")
    params, batch = init(jax.random.key(0)), numpy_batch(0)
    exact, rounded = float(score(params, batch)[0]), float(score8(params, batch)[0])
    assert abs(exact - np.log(96)) > 0.1  # the layers matter to it
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"precision.compute": "float16"},
        {"precision.parameters": "bfloat16", "precision.stochastic_rounding": "True"},
        {"precision.matmul": "float8"},
    ],
    ids=["float16", "stochastic_rounding", "float8"],
)
def test_training_in_low_precision_follows_f32(options):
    rate = {"optimizer.learning_rate": "3e-3"}
    exact = small_config(**rate)
    low = dict(rate, **{name: value for name, value in options.items() if name != "precision.matmul"})
    low = small_config(**low)
    if "precision.matmul" in options:
        low = dataclasses.replace(low, precision=dataclasses.replace(low.precision, matmul="float8"))
    losses, expected = run_steps(built_step(low), 40, low), run_steps(built_step(exact), 40, exact)
    assert expected[-1] < expected[0] - 1
    assert losses[-1] == pytest.approx(expected[-1], abs=0.06)
