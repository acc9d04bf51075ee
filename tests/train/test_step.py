"""The step: one compilation, accumulation equal to a large batch, nothing fetched by accident."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.train.aot import abstract_inputs
from lm.train.step import program_config
from tests.train.common import built_step, fake_batch, numpy_batch, run_steps, scalars, small_config


def test_a_second_learning_rate_leaves_the_jit_cache_at_one_entry():
    config = small_config(**{"optimizer.name": "muon"})
    built = built_step(config)
    state = built.init()
    for rate in (1e-3, 3e-3):
        changed = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))
        state, _ = built.step(state, fake_batch(built.mesh, 0), scalars(built, 0, changed))
    assert built.step._cache_size() == 1


@pytest.mark.parametrize("micro", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_accumulation_over_unequal_masks_equals_one_large_batch(micro):
    accumulating = small_config(**{"optimizer.accumulation_steps": str(micro)})
    whole, parts = built_step(small_config()), built_step(accumulating)
    state, metrics = whole.step(whole.init(), fake_batch(whole.mesh, 0), scalars(whole, 0))
    part_state, part_metrics = parts.step(parts.init(), fake_batch(parts.mesh, 0, micro), scalars(parts, 0))
    for name in metrics:
        np.testing.assert_allclose(part_metrics[name], metrics[name], rtol=1e-6, err_msg=name)
    momenta, part_momenta = jax.tree.leaves(state.opt_state), jax.tree.leaves(part_state.opt_state)
    for a, b in zip(momenta, part_momenta, strict=True):  # first moments are 0.1 times the gradient
        np.testing.assert_allclose(b, a, atol=1e-6)


def test_the_step_touches_no_host_data():
    built = built_step(small_config())
    state, batch, hparams = built.init(), fake_batch(built.mesh, 0), scalars(built, 0)
    with jax.transfer_guard("disallow"):
        built.step(state, batch, hparams)


def test_building_allocates_nothing():
    before = len(jax.live_arrays())
    built = built_step(small_config(**{"optimizer.name": "muon"}))
    assert len(jax.live_arrays()) == before
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(built.state))


def test_bits_per_byte_and_loss_are_of_the_weighted_targets():
    built = built_step(small_config())
    _, metrics = built.step(built.init(), fake_batch(built.mesh, 0), scalars(built, 0))
    nats = float(metrics["loss"]) * float(metrics["tokens"])
    assert float(metrics["bits_per_byte"]) == pytest.approx(nats / float(metrics["bytes"]) / np.log(2), rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(np.log(96), abs=0.1)


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_bf16_parameters_keep_an_f32_optimizer_and_compile_once(optimizer):
    config = small_config(**{"optimizer.name": optimizer, "precision.parameters": "bfloat16"})
    built = built_step(config)
    state = built.init()
    for step in range(3):
        state, _ = built.step(state, fake_batch(built.mesh, 0), scalars(built, step, config))
    assert built.step._cache_size() == 1
    assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, built.state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state)} == {"float32", "int32"}


@pytest.mark.parametrize(
    ("optimizer", "compute"), [("adamw", "float32"), pytest.param("muon", "bfloat16", marks=pytest.mark.slow)]
)
def test_training_lowers_the_loss(optimizer, compute):
    config = small_config(
        **{"optimizer.name": optimizer, "precision.compute": compute, "optimizer.learning_rate": "5e-3"}
    )
    losses = run_steps(built_step(config), 12, config)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_dropout_differs_by_step_and_repeats_by_seed():
    config = small_config(**{"model.dropout": "0.3", "optimizer.learning_rate": "1e-12"})
    first, again = (run_steps(built_step(config), 3, config) for _ in range(2))
    assert first == again
    assert len(set(first)) == 3


def double_loss(model, params, batch, **kwargs):
    """An objective of one's own, for the test below."""
    from lm.objectives import next_token

    loss, sums = next_token(model, params, batch, **kwargs)
    return 2 * loss, sums | {"doubled": 2 * sums["nll"]}


@pytest.mark.slow
def test_an_objective_of_ones_own_is_named_in_the_config():
    own = built_step(small_config(objective="tests.train.test_step:double_loss"))
    plain = built_step(small_config())
    _, metrics = own.step(own.init(), fake_batch(own.mesh, 0), scalars(own, 0))
    _, expected = plain.step(plain.init(), fake_batch(plain.mesh, 0), scalars(plain, 0))
    np.testing.assert_allclose(metrics["grad_norm"], 2 * expected["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(metrics["doubled"], 2 * expected["loss"], rtol=1e-5)  # reported per token


def test_without_a_document_mask_a_row_is_one_document():
    """Its ids are not looked at: neither those of documents nor, at a row's end, those of padding."""
    config = small_config(**{"data.document_mask": "False"})
    masked = small_config()
    batch = numpy_batch(0)
    whole = batch | {"segment_ids_BT": (batch["weights_BT"] > 0).astype(np.int32)}

    def loss(config, arrays):
        built = built_step(config)
        _, metrics = built.step(built.init(), {name: a[None] for name, a in arrays.items()}, scalars(built, 0))
        return float(metrics["loss"])

    assert loss(config, batch) == loss(config, whole)
    assert loss(config, batch) == pytest.approx(loss(masked, whole), abs=1e-6)
    assert abs(loss(config, batch) - loss(masked, batch)) > 1e-4


def test_another_seed_shares_the_program_and_gets_what_its_own_step_gives_it():
    dropout = {"model.dropout": "0.3"}
    shared, config = built_step(small_config(**dropout)), small_config(seed="5", **dropout)
    own = built_step(config)
    results = []
    for built in (shared, own):
        state = built.init(None, 5)
        state, metrics = built.step(state, fake_batch(built.mesh, 0), scalars(built, 0, config))
        results.append((state.params, metrics))
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    _, metrics = shared.step(shared.init(), fake_batch(shared.mesh, 0), scalars(shared, 0, small_config(**dropout)))
    assert metrics["loss"] != results[0][1]["loss"]
    assert shared.step._cache_size() == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_configs_of_one_program_lower_to_the_same_text(optimizer):
    config = small_config(**{"optimizer.name": optimizer})
    other = small_config(
        seed="3",
        **{"optimizer.name": optimizer, "optimizer.learning_rate": "0.3", "optimizer.adam_learning_rate": "0.1"},
        **{"optimizer.weight_decay": "0", "optimizer.b1": "0.5", "optimizer.b2": "0.6", "optimizer.num_steps": "7"},
        **{"optimizer.muon_momentum": "0.4", "optimizer.muon_b2": "0.3", "optimizer.clip_norm": "None"},
        **{"optimizer.adafactor_decay": "0.7", "optimizer.adafactor_clip": "3", "optimizer.warmup_steps": "2"},
        **{"optimizer.schedule": "wsd", "optimizer.final_learning_rate": "0.5", "optimizer.decay_fraction": "0.9"},
        **{"data.source": "text", "data.path": "x", "data.packing": "best_fit", "eval.tokens": "9", "init_from": "y"},
    )
    assert program_config(config) == program_config(other)
    assert program_config(config) != program_config(small_config(**{"optimizer.muon_iterations": "4"}))
    texts = [
        built.step.lower(built.state, *abstract_inputs(c, built.mesh)).as_text()
        for c, built in ((config, built_step(config)), (other, built_step(other)))
    ]
    assert texts[0] == texts[1]
