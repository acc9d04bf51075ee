"""What holds for every optimizer: masks, clipping, muP, types of the state, shardings, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.axes import SHARDED_AXES
from lm.checkpoint.store import Checkpoints
from lm.config import apply_overrides, default
from lm.errors import ConfigError
from lm.optim import build_optimizer, hyperparameters, state_letters
from lm.optim.mup import direction_factor
from lm.optim.state import FIRST_MOMENTS, flatten, parse_path
from lm.parallel.mesh import make_mesh, optimizer_shardings, parameter_shardings
from lm.resolve import resolve
from tests.optim.common import PATHS, gradients, parameters, small_config, trajectory
from tests.train.common import built_step, run_steps
from tests.train.common import small_config as train_config

# Every rule, with a first moment to keep in bf16 where it can have one.
RULES = {
    "adamw": {"name": "adamw"},
    "muon": {"name": "muon"},
    "normuon": {"name": "muon", "muon_normalize": "True", "muon_split_heads": "True"},
    "adafactor": {"name": "adafactor", "adafactor_momentum": "True"},
    "lion": {"name": "lion"},
    "soap": {"name": "soap", "soap_every": "2"},
    "schedule_free": {"name": "schedule_free"},
    "own": {"name": "optax:scale_by_radam"},
}


def rules(*fast: str, but: tuple[str, ...] = ()):
    """Return all rules for `parametrize`, those that are not named here in the slow tier."""
    return [rule if rule in fast else pytest.param(rule, marks=pytest.mark.slow) for rule in RULES if rule not in but]


def mesh_of_four():
    """Two replicas whose parameters two devices share."""
    return make_mesh(train_config(devices=4, fsdp=2).parallel, jax.devices()[:4])


def with_moments(config, moments):
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, moments=moments))


@pytest.mark.parametrize("rule", rules("schedule_free"))
def test_multipliers_by_path_are_exact(rule):
    """Rate and decay multiply; a match decides alone, so decay can be turned on for a norm and off for a table."""
    plain = small_config(**RULES[rule], weight_decay="0.0")
    turned = small_config(
        **RULES[rule],
        weight_decay="0.2",
        lr_multipliers="(('mlp/up', 0.5), ('mlp', 2.0))",
        weight_decay_multipliers="(('attention_norm', 3.0), ('embedding$', 0.0))",
    )
    without, found = (trajectory(config, 1)[0][0] for config in (plain, turned))
    for path, parameter in flatten(parameters()).items():
        rate = 0.5 if "mlp/up" in path else 2.0 if "mlp" in path else 1.0
        decay = 0.6 if "attention_norm" in path else 0.2 if path.endswith("kernel") else 0.0
        expected = rate * (without[path] - 1e-3 * decay * parameter)
        atol = 5e-7 if rule == "schedule_free" else 1e-9  # whose update is a difference of two parameters
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=atol, err_msg=path)


def test_block_clipping_holds_each_layer_and_each_group_to_the_norm():
    # With this epsilon Adam's first direction is linear in the gradient.
    options = {"b1": "0.0", "b2": "0.0", "epsilon": "1e8", "clip": "block", "learning_rate": "1e8"}
    limit = 3.0
    updates, _, _ = trajectory(small_config(**options, clip_norm=str(limit)), 1)
    grads = flatten(gradients(0))
    blocks = {}  # block -> [(gradient, clipped)]
    for path in PATHS:
        if path.startswith("layers/"):
            for layer in range(2):
                blocks.setdefault(layer, []).append((grads[path][layer], updates[0][path][layer]))
        else:
            blocks.setdefault(path.split("/")[0], []).append((grads[path], updates[0][path]))
    assert set(blocks) == {0, 1, "final_norm", "head"}
    clipped = 0
    for name, pairs in blocks.items():
        norm = np.sqrt(sum(np.sum(np.square(g)) for g, _ in pairs))
        clipped += norm > limit
        for g, u in pairs:
            np.testing.assert_allclose(u, -g * min(1, limit / norm), rtol=1e-5, err_msg=str(name))
    assert 0 < clipped < len(blocks), "some blocks are clipped and some are not"


MUP = {
    "adamw": 1 / 4,
    "lion": 1 / 4,
    "adafactor": 1 / 4,
    "soap": 1 / 4,
    "schedule_free": 1 / 4,
    "optax:scale_by_radam": 1 / 4,
    "muon": 1 / 2,
    "muon/spectral": 1.0,
    "muon/max_ratio": 1.0,
}


@pytest.mark.parametrize("rule", MUP)
def test_mup_factors_at_four_times_the_base_width(rule):
    name, _, scale = rule.partition("/")
    config = small_config(name=name, **({"muon_scale": scale} if scale else {}))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, d_model=256, mup_base_width=64))
    factors = {path: direction_factor(config, path) for path in PATHS}
    hidden = {path for path in PATHS if path.startswith("layers/") and path.endswith("kernel")}
    assert {factors[path] for path in hidden} == {MUP[rule]}
    assert {factors[path] for path in set(PATHS) - hidden} == {1.0}, "embeddings, head, norms and biases"
    assert direction_factor(config, "layers/experts/router/kernel") == 1 / 4, "a readout that Adam updates"


@pytest.mark.slow
def test_mup_scales_the_direction_and_leaves_decay_alone():
    plain, decay = small_config(), 0.3
    mup = small_config(weight_decay=str(decay))
    mup = dataclasses.replace(mup, model=dataclasses.replace(mup.model, d_model=256, mup_base_width=64))
    (without,), _, _ = trajectory(plain, 1)
    (found,), _, _ = trajectory(mup, 1)
    for path, parameter in flatten(parameters()).items():
        hidden = path.startswith("layers/") and path.endswith("kernel")
        decayed = decay if path.endswith(("kernel", "embedding")) else 0.0
        expected = (0.25 if hidden else 1) * without[path] - 1e-3 * decayed * parameter
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-9, err_msg=path)


@pytest.mark.parametrize("rule", rules("adamw", but=("schedule_free",)))
def test_bf16_moments_stay_bf16_and_change_little(rule):
    """`trajectory` checks that three steps with traced betas compile once: a promoted moment would not."""
    config = small_config(**RULES[rule])
    exact, _, _ = trajectory(config, 3)
    rounded, _, state = trajectory(with_moments(config, "bfloat16"), 3)
    for path, leaf in flatten(state).items():
        slot = (parse_path(path) or (None,))[0]
        expected = jnp.bfloat16 if slot in FIRST_MOMENTS else jnp.int32 if path.endswith("count") else jnp.float32
        assert leaf.dtype == expected, path
    if rule == "lion":  # a sign may turn where the sum is about zero
        return
    for path in PATHS:
        change = np.abs(np.asarray(rounded[-1][path] - exact[-1][path])).max()
        assert change <= 0.03 * np.abs(exact[-1][path]).max(), path


@pytest.mark.parametrize("rule", rules("adafactor"))
def test_states_shard_over_fsdp_and_a_sharded_update_equals_the_single_devices(rule):
    config = small_config(**RULES[rule])
    mesh = mesh_of_four()
    expected, _, _ = trajectory(config, 4)

    start = parameters()
    optimizer = build_optimizer(config, hyperparameters(config.optimizer, 0))
    state = optimizer.init(start)
    by_parameter, by_state = (
        parameter_shardings(mesh, start, SHARDED_AXES),
        optimizer_shardings(mesh, state, SHARDED_AXES),
    )
    start, state = jax.device_put(start, by_parameter), jax.device_put(state, by_state)

    def step(params, state, grads, hparams):
        optimizer = build_optimizer(config, hparams)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, updates

    step = jax.jit(step, out_shardings=(by_parameter, by_state, by_parameter))
    for number in range(4):
        hparams = {name: jnp.float32(value) for name, value in hyperparameters(config.optimizer, number).items()}
        start, state, updates = step(start, state, jax.device_put(gradients(number), by_parameter), hparams)
    for path, update in flatten(updates).items():
        np.testing.assert_allclose(update, expected[-1][path], rtol=2e-3, atol=2e-6, err_msg=path)

    for path, leaf in flatten(state).items():
        sharded = any(axis is not None for axis in leaf.sharding.spec)
        dims = state_letters(path)
        can = dims is not None and any(d == "D" and size % 2 == 0 for d, size in zip(dims, leaf.shape, strict=True))
        can = can and dims.removeprefix("L") != "D"  # vectors stay whole
        assert sharded == can, f"{path} {leaf.shape} {leaf.sharding.spec}"


def test_letters_of_soaps_squares():
    prefix = "1/inner_states/soap/inner_state"
    assert state_letters(f"{prefix}/left/layers/attention/query/kernel") == "LDD"
    assert state_letters(f"{prefix}/right_basis/layers/attention/query/kernel") == "LNHNH"
    assert state_letters(f"{prefix}/left_basis/layers/attention/out/kernel") == "LNHNH"
    assert state_letters(f"{prefix}/nu/layers/attention/out/kernel") == "LNHD"
    assert state_letters(f"{prefix}/count") is None


def refusal(*overrides: tuple[str, str]) -> str:
    config = default()
    with pytest.raises(ConfigError) as error:
        apply_overrides(config, list(overrides))
        resolved = resolve(config)
        optimizer = build_optimizer(resolved, hyperparameters(resolved.optimizer, 0))
        optimizer.init(parameters())
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "needles"),
    [
        ({"optimizer.name": "soup"}, ["config.optimizer.name='soup'", "adafactor", 'Did you mean "soap"?']),
        ({"optimizer.name": "optax:scale_by_radamm"}, ["config.optimizer.name", "scale_by_radamm"]),
        ({"optimizer.name": "no_such_module:X"}, ["config.optimizer.name", "no_such_module"]),
        ({"optimizer.name": "optax:adamw"}, ["config.optimizer.options=()", "learning_rate"]),
        (
            {"optimizer.name": "optax:scale_by_radam", "optimizer.options": "(('b4', 0.5),)"},
            ["config.optimizer.options", "b4"],
        ),
        ({"optimizer.options": "(('b2', 0.5),)"}, ["config.optimizer.options", "adamw"]),
        (
            {"optimizer.name": "optax:scale_by_radam", "optimizer.options": "(('b2', 0.5), ('b2', 0.6))"},
            ["config.optimizer.options", "once"],
        ),
        ({"optimizer.name": "math:hypot"}, ["config.optimizer.name='math:hypot'", "GradientTransformation"]),
        (
            {"optimizer.weight_decay_multipliers": "(('(', 0.5),)"},
            ["weight_decay_multipliers='('", "regular expression"],
        ),
        ({"optimizer.lr_multipliers": "(('(', 0.5),)"}, ["lr_multipliers='('", "regular expression"]),
        ({"optimizer.clip": "layer"}, ["config.optimizer.clip='layer'", "global, block"]),
        (
            {"optimizer.name": "schedule_free", "precision.parameters": "bfloat16"},
            ["config.precision.parameters='bfloat16'", "schedule_free"],
        ),
        (
            {"optimizer.name": "schedule_free", "precision.moments": "bfloat16"},
            ["config.precision.moments='bfloat16'", "schedule_free"],
        ),
        (
            {"optimizer.name": "adafactor", "precision.moments": "bfloat16"},
            ["config.precision.moments='bfloat16'", "adafactor_momentum"],
        ),
        (
            {"optimizer.name": "optax:scale_by_rms", "precision.moments": "bfloat16"},
            ["config.precision.moments='bfloat16'", "no first moment"],
        ),
    ],
)
def test_bad_names_and_options_are_refused_in_one_line(overrides, needles):
    message = refusal(*overrides.items())
    for needle in needles:
        assert needle in message, message


@pytest.mark.slow
def test_evaluation_sees_the_average_and_training_the_point_between():
    config = train_config(**{"optimizer.name": "schedule_free", "optimizer.learning_rate": "1e-2"})
    built = built_step(config)
    losses = run_steps(built, 8, config)
    assert losses[-1] < losses[0] - 0.3
    assert built.step._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", [*RULES, "soap_unrotated"])
def test_every_state_survives_a_checkpoint_on_another_mesh(rule, tmp_path):
    config = small_config(**RULES.get(rule, {"name": "soap", "soap_max_size": "1"}))
    _, _, state = trajectory(with_moments(config, "float32"), 2)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.save(2, {"params": parameters(), "opt_state": state}, data={}, meta={"step": 2})
    checkpoints.close()
    target = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        state,
        optimizer_shardings(mesh_of_four(), state, SHARDED_AXES),
    )
    restored = checkpoints.restore({"opt_state": target}).items["opt_state"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for path, leaf in flatten(restored).items():
        np.testing.assert_array_equal(leaf, flatten(state)[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["normuon", "adafactor", "lion", "soap", "schedule_free"])
def test_the_whole_step_on_a_mesh_equals_the_single_devices(rule):
    overrides = {f"optimizer.{name}": value for name, value in RULES[rule].items()}
    single = train_config(**overrides)
    sharded = train_config(devices=4, fsdp=2, **overrides)
    assert sharded.parallel.data == 2
    a, b = (run_steps(built_step(config), 4, config) for config in (single, sharded))
    np.testing.assert_allclose(b, a, atol=2e-4)
    assert all(built_step(config).step._cache_size() == 1 for config in (single, sharded))
    assert a[-1] < a[0]
    assert flatten(built_step(sharded).state.opt_state).keys() == flatten(built_step(single).state.opt_state).keys()


def test_soaps_moments_and_squares_are_sharded_over_fsdp():
    mesh = mesh_of_four()
    config = small_config(name="soap")
    state = build_optimizer(config, hyperparameters(config.optimizer, 0)).init(parameters())
    specs = flatten(jax.tree.map(lambda s: s.spec, optimizer_shardings(mesh, state, SHARDED_AXES)))
    prefix = "1/inner_states/soap/inner_state"
    assert specs[f"{prefix}/mu/layers/mlp/up/kernel"] == PartitionSpec(None, ("fsdp",), None)
    assert specs[f"{prefix}/left/layers/mlp/up/kernel"] == PartitionSpec(None, ("fsdp",), None)
    assert specs[f"{prefix}/right/layers/mlp/up/kernel"] == PartitionSpec(None, None, None)
