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
        out = [
            experts(*rows, kernels, capacity=capacity, **options)
            for rows in zip(*(jnp.split(a, parts) for a in (x_BTD, ids_BTk, gates_BTk)), strict=True)
        ]
        y_BTD, taken_E = zip(*out, strict=True)
        return jnp.concatenate(y_BTD), sum(taken_E)

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


@pytest.mark.parametrize("capacity", [None, 0.7], ids=["dropless", "capacity"])
@pytest.mark.parametrize("outer", [False, True], ids=["whole", "in_a_region"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_outputs_and_gradients_are_those_of_data_parallelism(sizes, outer, capacity):
    mesh, args = mesh_with(**sizes), inputs()
    parts = int(np.prod([size for axis, size in sizes.items() if axis in BATCH_AXES]))
    options = {"implementation": "blocked"}
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
    options = {"activation": "swiglu", "capacity": capacity, "implementation": "blocked"}
    expected = experts(*args, **options)
    if rows == 2:  # of which each half of the data's devices takes one
        expected = row_by_row(2, capacity)(*args, activation="swiglu", implementation="blocked")
    y_BTD, taken_E = jax.jit(lambda *args: make_experts(mesh_with(data=2, expert=4))(*args, **options))(*args)
    assert_close(y_BTD, expected[0])
    np.testing.assert_array_equal(taken_E, expected[1])


def test_a_width_that_does_not_divide_stays_whole():
    x_BTD, gates_BTk, kernels, ids_BTk, weights_BTD = inputs()
    kernels = {name: kernel[:, :, :15] if name != "down" else kernel[:, :15] for name, kernel in kernels.items()}
    args = (x_BTD, gates_BTk, kernels, ids_BTk, weights_BTD)
    expected = loss_and_gradients(experts, implementation="blocked")(*args)
    got = jax.jit(loss_and_gradients(make_experts(mesh_with(expert=2, tensor=2)), implementation="blocked"))(*args)
    assert_close(got[1], expected[1])


def test_a_capacity_sends_fixed_buffers_there_and_back():
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()
    run = make_experts(mesh_with(expert=4))
    args = (x_BTD, ids_BTk, gates_BTk, kernels)
    forward = lambda *args: run(*args, activation="swiglu", capacity=1.0)[0]  # noqa: E731
    C = B // 4 * T * k // E
    assert collectives(jax.jit(forward).lower(*args).compile().as_text()) == {("all-to-all", (1, 1, C, D)): 2}


def test_without_a_capacity_tokens_are_gathered_and_their_sums_scattered():
    x_BTD, gates_BTk, kernels, ids_BTk, _ = inputs()
    run = make_experts(mesh_with(expert=4))
    args = (x_BTD, ids_BTk, gates_BTk, kernels)
    forward = lambda *args: run(*args, activation="swiglu", implementation="blocked")[0]  # noqa: E731
    sent = collectives(jax.jit(forward).lower(*args).compile().as_text())
    assert sent == {("all-gather", (B, T, D)): 1, ("all-gather", (B, T, k)): 2, ("reduce-scatter", (B // 4, T, D)): 1}
