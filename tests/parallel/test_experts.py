"""Experts spread over devices: as on one, what is dropped included, and what is sent for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from lm.parallel.experts import make_experts

from lm.axes import BATCH_AXES
from lm.kernels.experts import experts
from tests.parallel import common
from tests.parallel.common import ROWS, WHOLE, assert_close, collectives, mesh_with, over_batch

B, T, D, F, E, k = 8, 12, 8, 16, 4, 2
SHARES = {"up": PartitionSpec("expert"), "gate": PartitionSpec("expert"), "down": PartitionSpec("expert")}


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


def in_a_region(mesh, **options):
    """Gradients of the experts are those of all rows of the devices that share them."""
    both = loss_and_gradients(make_experts(mesh), **options)
    replicas = tuple(axis for axis in common.batch_axes(mesh) if axis != "expert")

    def local(*args):
        (loss, (y_BTD, taken_E)), (dx, dgates, dkernels) = both(*args)
        loss, taken_E = common.sum_over_batch(mesh, (loss, taken_E))
        return (loss, (y_BTD, taken_E)), (dx, dgates, jax.lax.psum(dkernels, replicas))

    in_specs = (ROWS, ROWS, SHARES, ROWS, ROWS)
    return jax.jit(over_batch(mesh, local, in_specs, ((WHOLE, (ROWS, WHOLE)), (ROWS, ROWS, SHARES))))


def row_by_row(parts: int, capacity):
    """The same on one device, of the rows of each device in turn: what data parallelism computes and drops."""

    def split(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        rows = [a.reshape(parts, -1, *a.shape[1:]) for a in (x_BTD, ids_BTk, gates_BTk)]
        y_BTD, taken_E = jax.lax.map(lambda rows: experts(*rows, kernels, capacity=capacity, **options), rows)
        return y_BTD.reshape(x_BTD.shape), jnp.sum(taken_E, 0)

    return split


MESHES = [
    ({"expert": 2}, True),
    ({"expert": 4}, False),
    ({"data": 2, "expert": 2}, False),
    ({"fsdp": 2, "expert": 4}, True),
    ({"expert": 2, "tensor": 2}, False),
    ({"data": 2, "expert": 2, "tensor": 2}, True),
    ({"data": 2, "tensor": 4}, True),
]
ALL = [(sizes, outer) for sizes, _ in MESHES for outer in (False, True)]
CASES = [pytest.param(*case, marks=() if case in MESHES else pytest.mark.slow, id=str(case)) for case in ALL]


@pytest.mark.parametrize("capacity", [None, 0.7], ids=["dropless", "capacity"])
@pytest.mark.parametrize("sizes, outer", CASES)
def test_outputs_and_gradients_are_those_of_data_parallelism(sizes, outer, capacity):
    """Outside of a region over the batch's axes, as in evaluation, and in one, as in training."""
    mesh, args = mesh_with(**sizes), inputs()
    parts = int(np.prod([size for axis, size in sizes.items() if axis in BATCH_AXES]))
    options = {"implementation": "ragged"}
    (loss, (y_BTD, taken_E)), gradients = jax.jit(loss_and_gradients(row_by_row(parts, capacity), **options))(*args)
    options["capacity"] = capacity
    run = in_a_region(mesh, **options) if outer else jax.jit(loss_and_gradients(make_experts(mesh), **options))
    (got, (got_BTD, got_E)), got_gradients = run(*args)
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    assert_close(got_BTD, y_BTD)
    assert_close(got_gradients, gradients)
    np.testing.assert_array_equal(got_E, taken_E)
    demand = int(jnp.sum(args[3] >= 0))
    assert int(got_E.sum()) < demand if capacity else int(got_E.sum()) == demand


@pytest.mark.parametrize("capacity", [None, 0.7], ids=["dropless", "capacity"])
@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_do_not_divide_go_through_all_experts(rows, capacity):
    """A prompt: every device has the same tokens and adds what its own experts say."""
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()
    args = (x_BTD[:rows], ids_BTk[:rows], gates_BTk[:rows], kernels)
    options = {"activation": "swiglu", "capacity": capacity, "implementation": "ragged"}
    # Of two rows each half of the data's devices takes one.
    alone = row_by_row(rows, capacity)
    expected = jax.jit(lambda *args: alone(*args, activation="swiglu", implementation="ragged"))(*args)
    y_BTD, taken_E = jax.jit(lambda *args: make_experts(mesh_with(data=2, expert=4))(*args, **options))(*args)
    assert_close(y_BTD, expected[0])
    np.testing.assert_array_equal(taken_E, expected[1])


def test_a_width_that_does_not_divide_stays_whole():
    x_BTD, gates_BTk, kernels, ids_BTk, weights_BTD = inputs()
    kernels = {name: kernel[:, :, :15] if name != "down" else kernel[:, :15] for name, kernel in kernels.items()}
    args = (x_BTD, gates_BTk, kernels, ids_BTk, weights_BTD)
    expected = jax.jit(loss_and_gradients(experts, implementation="ragged"))(*args)
    got = jax.jit(loss_and_gradients(make_experts(mesh_with(expert=2, tensor=2)), implementation="ragged"))(*args)
    assert_close(got[1], expected[1])


def test_a_capacity_sends_fixed_buffers_there_and_back():
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()
    run = make_experts(mesh_with(expert=4))
    args = (x_BTD, ids_BTk, gates_BTk, kernels)
    forward = lambda *args: run(*args, activation="swiglu", capacity=1.0)[0]  # noqa: E731
    part = (1, B // 4 * T * k // E, D)  # C tokens of one expert, to each of four devices
    assert collectives(jax.jit(forward).lower(*args).compile().as_text()) == {("all-to-all", part): 2}


def test_without_a_capacity_tokens_are_gathered_and_their_sums_scattered():
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()
    run = make_experts(mesh_with(expert=4))
    args = (x_BTD, ids_BTk, gates_BTk, kernels)
    forward = lambda *args: run(*args, activation="swiglu", implementation="ragged")[0]  # noqa: E731
    sent = collectives(jax.jit(forward).lower(*args).compile().as_text())
    assert sent == {("all-gather", (B, T, D)): 1, ("all-gather", (B, T, k)): 2, ("reduce-scatter", (B // 4, T, D)): 1}


def model_on(mesh, config) -> Transformer:
    injected = {"experts": make_experts(mesh), "constrain": make_constrain(mesh), "lookup": make_lookup(mesh)}
    return Transformer(config.model, config.precision, **injected, sum_over_batch=sum_over_batch)


def training_gradients(mesh, config, params):
    """Return the loss, the gradients and what is reported, as a training step takes them in a region."""
    batch = {name: jnp.asarray(a) for name, a in numpy_batch(0).items()}
    model, cross_entropy = model_on(mesh, config), make_cross_entropy(mesh)

    def local(params, batch):
        def loss_fn(params):
            scale = 1 / numpy_batch(0)["weights_BT"].sum()
            options = {"cross_entropy": cross_entropy, "grad_scale": scale, "dropout_key": None}
            return next_token(model, params, batch, **options)

        (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)

        def reduced(grad, spec):
            own = {axis for axes in spec for axis in ((axes,) if isinstance(axes, str) else axes or ())}
            return jax.lax.psum(grad, tuple(axis for axis in common.batch_axes(mesh) if axis not in own))

        return common.sum_over_batch(mesh, (loss, sums)), jax.tree.map(reduced, grads, specs)

    shardings = parameter_shardings(mesh, params, MODEL_AXES)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    run = over_batch(mesh, local, (specs, ROWS), (WHOLE, specs))
    return jax.jit(run)(jax.device_put(params, shardings), batch)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", ["None", "4"])  # 4: of four experts that is all of them
@pytest.mark.parametrize("sizes", [{"expert": 4, "data": 2}, {"expert": 2, "data": 2, "tensor": 2}], ids=str)
def test_a_models_losses_reports_and_gradients_are_those_of_one_device(sizes, capacity):
    """The router's statistics are those of all tokens, on every device; its experts are local shards."""
    overrides = {"model.num_experts": "4", "model.d_ff": "32", "model.expert_capacity": capacity}
    overrides |= {"model.value_embeddings": "True", "model.router_balance_loss": "0.5", "model.router_z_loss": "0.1"}
    config = small_config(**overrides)
    params = Transformer(config.model, config.precision).init(jax.random.key(0))
    (loss, sums), grads = training_gradients(mesh_with(data=1), config, params)
    (got, got_sums), got_grads = training_gradients(mesh_with(**sizes), config, params)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    assert got_sums.keys() == sums.keys() and sums["router_balance_loss"] > 0
    for name in sums:
        np.testing.assert_allclose(got_sums[name], sums[name], rtol=1e-5, err_msg=name)
    assert_close(got_grads, grads)


def test_experts_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"config.parallel.expert=4: .*a divisor of num_experts=6"):
        small_config(devices=4, **{"model.num_experts": "6", "parallel.expert": "4"})
