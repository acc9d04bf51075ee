"""Shardings from the tables, and the same batches and losses on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.axes import SHARDED_AXES, partition
from lm.parallel.mesh import named_sharding, optimizer_shardings, parameter_shardings, place_batch
from lm.tree import map_with_path
from tests.train.common import built_step, fake_batch, mesh_of, run_steps, scalars, small_config


def test_an_axis_that_does_not_divide_is_left_out():
    assert partition("LDF", (2, 64, 96), SHARDED_AXES, {"data": 2, "fsdp": 4}) == (None, ("fsdp",), None)
    assert partition("LDF", (2, 63, 96), SHARDED_AXES, {"data": 2, "fsdp": 4}) == (None, None, None)
    assert partition("BT", (8, 5), {"B": ("data", "fsdp")}, {"data": 2, "fsdp": 4}) == (("data", "fsdp"), None)
    assert partition("BT", (2, 5), {"B": ("data", "fsdp")}, {"data": 2, "fsdp": 4}) == (("data",), None)
    assert partition("DD", (8, 8), SHARDED_AXES, {"fsdp": 4}) == (("fsdp",), None), "an axis shards one dimension"


def test_parameters_and_their_optimizer_state_are_sharded_alike():
    built = built_step(small_config(fsdp=4, devices=8))
    mesh = built.mesh
    params = parameter_shardings(mesh, built.state.params, SHARDED_AXES)
    assert params["layers"]["mlp"]["up"]["kernel"].spec == PartitionSpec(None, ("fsdp",), None)
    state = optimizer_shardings(mesh, built.state.opt_state, SHARDED_AXES)
    mirrored = {}
    map_with_path(lambda path, sharding: mirrored.__setitem__(path, sharding.spec), state)
    momenta = [spec for path, spec in mirrored.items() if path.endswith("layers/mlp/up/kernel")]
    assert momenta and all(spec == PartitionSpec(None, ("fsdp",), None) for spec in momenta)
    assert all(spec == PartitionSpec() for path, spec in mirrored.items() if path.endswith("count"))


def test_initialization_makes_each_shard_on_its_device():
    built = built_step(small_config(fsdp=4, devices=8))
    state = built.init()
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 192)}
    single = built_step(small_config()).init()
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(single.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (2, 1), (8, 1), (8, 4)])
def test_placed_batches_are_the_same_global_batch_on_any_mesh(devices, fsdp, micro):
    mesh = mesh_of(devices, fsdp)
    whole = np.arange(16 * 6).reshape(16, 6)
    asked = []

    def build(rows, columns):
        asked.append(len(rows))
        return {"x": whole[rows][:, columns]}

    placed = place_batch(mesh, (micro, 16 // micro, 6), build)["x"]
    np.testing.assert_array_equal(np.asarray(placed).reshape(16, 6), whole)
    assert placed.sharding == named_sharding(mesh, "ABT", placed.shape, {"B": ("data", "fsdp")})
    assert sum(asked) == 16, "each row is built once"


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_losses_agree_with_one_device_within_1e_5_over_5_steps(devices):
    one, many = (run_steps(built_step(small_config(devices=n)), 5) for n in (1, devices))
    np.testing.assert_allclose(many, one, atol=1e-5)
    assert one[-1] < one[0]


@pytest.mark.slow
def test_losses_agree_with_parameters_sharded_over_fsdp():
    sharded, single = (run_steps(built_step(small_config(devices=n, fsdp=f)), 5) for n, f in [(8, 4), (1, 1)])
    np.testing.assert_allclose(sharded, single, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["ragged", "blocked"])
def test_a_mixture_of_experts_is_the_same_on_a_mesh(implementation):
    """Losses, and the counts of tokens, which every device sorts for itself."""
    overrides = {"model.num_experts": "4", "model.experts": implementation, "model.d_ff": "32"}
    figures = {}
    for shape in [(1, 1), (4, 2)]:
        config = small_config(devices=shape[0], fsdp=shape[1], **overrides)
        built = built_step(config)
        state, figures[shape] = built.init(), []
        for step in range(3):
            state, metrics = built.step(state, fake_batch(built.mesh, 0), scalars(built, step))
            figures[shape].append({name: float(value) for name, value in metrics.items()})
    for one, many in zip(figures[1, 1], figures[4, 2], strict=True):
        assert one.keys() == many.keys()
        for name in one:
            np.testing.assert_allclose(many[name], one[name], rtol=1e-4, err_msg=name)
    assert figures[1, 1][0]["routed_tokens"] == 2 * 16 * 12 * 2


def test_the_loss_gathers_no_hidden_states_and_reduces_the_heads_gradient_once():
    built = built_step(small_config(devices=8))
    batch = fake_batch(built.mesh, 0)
    text = built.step.lower(built.state, batch, scalars(built, 0)).compile().as_text()
    assert "all-gather" not in text, "data parallelism needs no gather"
    assert "all-to-all" not in text
    vocabulary_reductions = [line for line in text.splitlines() if "all-reduce(" in line and "[64,96]" in line]
    assert len(vocabulary_reductions) <= 1, vocabulary_reductions


def test_sums_of_int_counters_survive_the_mesh():
    """`bytes` counts targets that weigh something, over all devices."""
    built = built_step(small_config(devices=8))
    _, metrics = built.step(built.init(), fake_batch(built.mesh, 0), scalars(built, 0))
    batch = fake_batch(mesh_of(1, 1), 0)
    weighted = jnp.sum(jnp.where(batch["weights_BT"] > 0, batch["target_bytes_BT"], 0))
    assert int(metrics["bytes"]) == int(weighted)
