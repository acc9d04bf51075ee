"""Experts spread over devices: as on one, what is dropped included, and what is sent for it."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.axes import BATCH_AXES
from lm.errors import ConfigError
from lm.kernels.experts import experts, spread_experts
from lm.model import Transformer
from lm.parallel.auto import auto_layout
from lm.parallel.local import local_model
from lm.parallel.region import region
from tests.parallel.common import (
    RESIDUAL,
    ROWS,
    WHOLE,
    assert_close,
    collectives,
    mesh_with,
    model_gradients,
    summed,
)
from tests.train.common import small_config

B, T, D, F, E, k = 8, 12, 8, 16, 4, 2
_UP = PartitionSpec("expert", None, "tensor")
SHARES = {"up": _UP, "gate": _UP, "down": PartitionSpec("expert", "tensor")}


def inputs():
    keys = jax.random.split(jax.random.key(0), 6)
    x_BTD = jax.random.normal(keys[0], (B, T, D))
    # Uneven on purpose: most tokens want expert 0. Some are padding.
    scores_BTE = jax.random.normal(keys[1], (B, T, E)) + jnp.array([2.0, 0, 0, -1]).reshape(1, 1, E)
    gates_BTk, ids_BTk = jax.lax.top_k(jax.nn.softmax(scores_BTE), k)
    ids_BTk = jnp.where(jnp.arange(T).reshape(1, T, 1) < 10, ids_BTk, -1)
    shapes = {"up": (E, D, F), "gate": (E, D, F), "down": (E, F, D)}
    kernels = {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys[2:], shapes.items(), strict=False)
    }
    return x_BTD, gates_BTk, kernels, ids_BTk, jax.random.normal(keys[5], (B, T, D))


def loss_and_gradients(experts, **options):
    def loss(x_BTD, gates_BTk, kernels, ids_BTk, weights_BTD):
        y_BTD, taken_E = experts(x_BTD, ids_BTk, gates_BTk, kernels, activation="swiglu", **options)
        return jnp.sum(jnp.sin(y_BTD) * weights_BTD), (y_BTD, taken_E)

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)


def layout_on(mesh):
    return local_model(small_config(**{"model.num_experts": str(E)}), mesh).model.layout


def on_mesh(mesh, **options):
    """Return a jitted function of whole arrays, as a layer calls the experts; it sums what the devices have."""
    layout = layout_on(mesh)
    args = (RESIDUAL, ROWS, SHARES, ROWS, RESIDUAL)

    def layer(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        x_BTD, length = layout.enter(x_BTD, T), x_BTD.shape[1]
        y_BTD, taken_E = layout.experts(x_BTD, ids_BTk, gates_BTk, kernels, **options)
        return layout.leave(y_BTD, length), taken_E

    def local(*arrays):
        (loss, (y_BTD, taken_E)), gradients = loss_and_gradients(layer, **options)(*arrays)
        gradients = summed(mesh, gradients, args[:3])
        taken_E = summed(mesh, taken_E, PartitionSpec("tensor"))  # the same there
        return (summed(mesh, loss, WHOLE), (y_BTD, taken_E)), gradients

    return jax.jit(region(mesh, local, args, ((WHOLE, (RESIDUAL, WHOLE)), args[:3])))


def row_by_row(parts: int, capacity):
    """The same on one device, of the rows of each device in turn: what data parallelism computes and drops."""

    def split(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        rows = [a.reshape(parts, -1, *a.shape[1:]) for a in (x_BTD, ids_BTk, gates_BTk)]
        y_BTD, taken_E = jax.lax.map(lambda rows: experts(*rows, kernels, capacity=capacity, **options), rows)
        return y_BTD.reshape(x_BTD.shape), jnp.sum(taken_E, 0)

    return split


MESHES = [
    {"expert": 2},
    {"expert": 4},
    {"data": 2, "expert": 2},
    {"fsdp": 2, "expert": 4},
    {"expert": 2, "tensor": 2},
    {"data": 2, "expert": 2, "tensor": 2},
    {"data": 2, "tensor": 4},
]
_FAST = ({"expert": 2}, {"data": 2, "expert": 2, "tensor": 2})
CASES = [pytest.param(m, marks=() if m in _FAST else pytest.mark.slow, id=str(m)) for m in MESHES]


@pytest.mark.parametrize("capacity", [None, 0.7], ids=["dropless", "capacity"])
@pytest.mark.parametrize("sizes", CASES)
def test_outputs_and_gradients_are_those_of_data_parallelism(sizes, capacity):
    mesh, args = mesh_with(**sizes), inputs()
    parts = int(np.prod([size for axis, size in sizes.items() if axis in BATCH_AXES]))
    options = {"implementation": "ragged"}
    (loss, (y_BTD, taken_E)), gradients = jax.jit(loss_and_gradients(row_by_row(parts, capacity), **options))(*args)
    (got, (got_BTD, got_E)), got_gradients = on_mesh(mesh, capacity=capacity, **options)(*args)
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    assert_close(got_BTD, y_BTD)
    for a, b in zip(jax.tree.leaves(got_gradients), jax.tree.leaves(gradients), strict=True):
        assert_close(a, b)
    np.testing.assert_array_equal(got_E, taken_E)
    demand = int(jnp.sum(args[3] >= 0))
    assert int(got_E.sum()) < demand if capacity else int(got_E.sum()) == demand


@pytest.mark.parametrize("capacity", [None, 0.7], ids=["dropless", "capacity"])
@pytest.mark.parametrize("rows", [1, 2])
def test_for_generation_any_number_of_rows_goes_through_all_experts(rows, capacity):
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()
    args = (x_BTD[:rows], ids_BTk[:rows], gates_BTk[:rows], kernels)
    options = {"activation": "swiglu", "implementation": "ragged"}
    # Of two rows each half of the data's devices takes one.
    expected = jax.jit(partial(row_by_row(rows, capacity), **options))(*args)
    run = auto_layout(mesh_with(data=2, expert=4)).experts
    y_BTD, taken_E = jax.jit(partial(run, capacity=capacity, **options))(*args)
    assert_close(y_BTD, expected[0])
    np.testing.assert_array_equal(taken_E, expected[1])


def sent_by(run, gradients: bool) -> dict:
    """Return the collectives of experts on four devices, forward and, with gradients, backward."""
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()

    def forward(x_BTD, ids_BTk, gates_BTk, kernels):
        return run(x_BTD, ids_BTk, gates_BTk, kernels, activation="swiglu", axis="expert")[0]

    def backward(dout_BTD, x_BTD, ids_BTk, gates_BTk, kernels):
        return jax.vjp(lambda x_BTD, kernels: forward(x_BTD, ids_BTk, gates_BTk, kernels), x_BTD, kernels)[1](dout_BTD)

    mesh, args, specs = mesh_with(expert=4), (x_BTD, ids_BTk, gates_BTk, kernels), (ROWS, ROWS, ROWS, SHARES)
    if gradients:
        program = region(mesh, backward, (ROWS, *specs), (ROWS, SHARES))
        return collectives(jax.jit(program).lower(x_BTD, *args).compile().as_text())
    return collectives(jax.jit(region(mesh, forward, specs, ROWS)).lower(*args).compile().as_text())


def test_a_capacity_sends_fixed_buffers_there_and_back():
    run = partial(spread_experts, capacity=1.0)
    part = (1, B // 4 * T * k // E, D)  # C tokens of one expert, to each of four devices
    assert sent_by(run, gradients=False) == {("all-to-all", part): 2}
    assert sent_by(run, gradients=True) == {("all-to-all", part): 1 + 2}, "the outputs are not used"


def test_without_a_capacity_tokens_are_gathered_and_their_sums_scattered():
    run, scattered = partial(spread_experts, implementation="ragged"), ("reduce-scatter", (B // 4, T, D))
    sent = {("all-gather", (B, T, D)): 1, ("all-gather", (B, T, k)): 2, scattered: 1}
    assert sent_by(run, gradients=False) == sent
    # The gradients of the outputs are gathered, those of the tokens scattered; the outputs are not used.
    assert sent_by(run, gradients=True) == {**sent, ("all-gather", (B, T, D)): 2}


@functools.cache  # the same for all meshes
def on_one_device(capacity):
    """Return a small mixture's config, parameters, loss, its sums and gradients."""
    overrides = {"model.num_experts": "4", "model.d_ff": "32", "model.expert_capacity": capacity}
    overrides |= {"model.value_embeddings": "True", "model.router_balance_loss": "0.5", "model.router_z_loss": "0.1"}
    config = small_config(**overrides)
    params = Transformer(config.model, config.precision).init(jax.random.key(0))
    return config, params, *model_gradients(config, mesh_with(data=1), params)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", ["None", "4"])  # 4: of four experts that is all of them
@pytest.mark.parametrize(
    "sizes",
    [{"expert": 4, "data": 2}, {"expert": 2, "data": 2, "tensor": 2}, {"fsdp": 2, "expert": 2, "context": 2}],
    ids=str,
)
def test_a_models_losses_reports_and_gradients_are_those_of_one_device(sizes, capacity):
    """The router's statistics are those of all tokens, on every device; its experts are local shards."""
    config, params, loss, sums, grads = on_one_device(capacity)
    got, got_sums, got_grads = model_gradients(config, mesh_with(**sizes), params)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    assert got_sums.keys() == sums.keys() and sums["router_balance_loss"] > 0
    for name in sums:
        np.testing.assert_allclose(got_sums[name], sums[name], rtol=1e-5, err_msg=name)
    assert_close(got_grads, grads)


def test_experts_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"config.parallel.expert=4: .*a divisor of .*num_experts=6"):
        small_config(devices=4, **{"model.num_experts": "6", "parallel.expert": "4"})
