"""The loss and the embedding with their vocabulary over devices: as on one, and what is sent for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.cross_entropy import cross_entropy
from lm.kernels.lookup import lookup
from lm.parallel.embedding import make_lookup
from lm.parallel.loss import make_cross_entropy
from tests.parallel.common import ROWS, WHOLE, assert_close, collectives, mesh_with, over_batch, sum_over_batch

B, T, D, V = 4, 16, 8, 48


def loss_inputs(V=V, highest=37):
    """Targets below `highest`: what comes after it is a padded vocabulary's."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden_BTD = jax.random.normal(keys[0], (B, T, D))
    head_DV = jax.random.normal(keys[1], (D, V))
    targets_BT = jax.random.randint(keys[2], (B, T), 0, highest)
    weights_BT = jax.random.uniform(keys[3], (B, T)) * (jnp.arange(T) > 2).astype(jnp.float32).reshape(1, T)
    return hidden_BTD, head_DV, weights_BT, targets_BT


def loss_and_gradients(cross_entropy, **options):
    def loss(hidden_BTD, head_DV, weights_BT, grad_scale, targets_BT):
        loss, *per_token = cross_entropy(
            hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, return_log_z=True, **options
        )
        return 3 * loss, per_token

    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)


def on_mesh(mesh, outer: bool, **options):
    both = loss_and_gradients(make_cross_entropy(mesh), **options)
    if not outer:
        return jax.jit(both)

    def local(*args):
        (loss, per_token), (dh, dhead, dweights, dscale) = both(*args)
        loss, dhead, dscale = sum_over_batch(mesh, (loss, dhead, dscale))
        return (loss, per_token), (dh, dhead, dweights, dscale)

    out_specs = ((WHOLE, [ROWS, ROWS]), (ROWS, WHOLE, ROWS, WHOLE))
    return jax.jit(over_batch(mesh, local, (ROWS, WHOLE, ROWS, WHOLE, ROWS), out_specs))


MESHES = [
    {"tensor": 2},
    {"tensor": 4},
    {"tensor": 8},
    {"data": 2, "tensor": 4},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"stage": 2, "tensor": 2},
    {"data": 2, "stage": 2, "tensor": 2},
    {"data": 2, "context": 4},
]


@pytest.mark.parametrize("outer", [False, True], ids=["whole", "in_a_region"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_loss_and_its_gradients_are_those_of_one_device(sizes, outer):
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs()
    args = (hidden_BTD, head_DV, weights_BT, 0.25, targets_BT)
    options = {"softcap": 3.0, "z_loss": 0.1, "chunk": 7}  # 7 divides no number of tokens here
    expected = jax.jit(loss_and_gradients(cross_entropy, **options))(*args)
    got = on_mesh(mesh_with(**sizes), outer, **options)(*args)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-6)
    for a, b in zip(got[0][1], expected[0][1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(got[1], expected[1], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("V, highest, options", [(48, 48, {"chunk": 1000}), (37, 37, {"chunk": 5}), (40, 3, {})])
def test_any_vocabulary_has_the_loss_of_one_device(V, highest, options):
    """Of targets everywhere; one that does not divide; one whose targets are all on the first device."""
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs(V, highest)
    args = (hidden_BTD[:, :15], head_DV, weights_BT[:, :15], 0.25, targets_BT[:, :15])  # T does not divide either
    expected = jax.jit(loss_and_gradients(cross_entropy, **options))(*args)
    got = on_mesh(mesh_with(data=2, tensor=4), False, **options)(*args)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-6)
    for a, b in zip(got[1], expected[1], strict=True):
        assert_close(a, b)


def test_large_logits_of_one_device_do_not_overflow():
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs()
    args = (hidden_BTD, head_DV.at[:, -6:].multiply(1e3), weights_BT, 0.25, targets_BT)
    expected = jax.jit(loss_and_gradients(cross_entropy))(*args)
    got = on_mesh(mesh_with(tensor=8), False)(*args)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-6)
    assert np.isfinite(got[0][0]) and got[0][0] > 1e3
    for a, b in zip(got[1], expected[1], strict=True):
        assert_close(a, b)


def test_a_chunk_of_the_loss_exchanges_two_numbers_per_token():
    """In the scan's body one all-gather; outside it the hidden states in, their gradients back, and scalars."""
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs()
    args = (hidden_BTD, head_DV, weights_BT, 0.25, targets_BT)
    both = loss_and_gradients(make_cross_entropy(mesh_with(tensor=4)), chunk=8)
    text = jax.jit(lambda *args: both(*args)[1][:2]).lower(*args).compile().as_text()
    sent = collectives(text)
    assert sent[("all-gather", (4, 2, 8))] == 1
    large = {key: count for key, count in sent.items() if len(key[1]) > 0 and key != ("all-gather", (4, 2, 8))}
    assert large == {("all-gather", (B, T, D)): 1, ("reduce-scatter", (B, T // 4, D)): 1}, sent


def table_and_gradient(lookup, letters, dtype=jnp.float32):
    def loss(table, ids_BT, weights):
        rows = lookup(table, ids_BT, jnp.dtype(dtype), letters)
        return jnp.sum(rows.astype(jnp.float32) * weights), rows

    return jax.value_and_grad(loss, has_aux=True)


@pytest.mark.parametrize("outer", [False, True], ids=["whole", "in_a_region"])
@pytest.mark.parametrize("letters, shape", [("VD", (48, 8)), ("PD", (40, 8)), ("VKH", (48, 4, 2)), ("VKH", (48, 1, 8))])
@pytest.mark.parametrize("sizes", [MESHES[1], MESHES[3], MESHES[4], MESHES[6]], ids=str)
def test_rows_and_the_tables_gradient_are_those_of_one_device(sizes, letters, shape, outer):
    """A table over its rows, one that is whole, one over its heads, and one with a head for all."""
    mesh = mesh_with(**sizes)
    keys = jax.random.split(jax.random.key(1), 3)
    table, weights = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (B, T, *shape[1:]))
    ids_BT = jax.random.randint(keys[2], (B, T), 0, shape[0]).at[:, 5].set(shape[0] - 1).at[:, 6].set(0)
    (_, expected), expected_gradient = table_and_gradient(lookup, letters)(table, ids_BT, weights)
    both = table_and_gradient(make_lookup(mesh), letters)

    def local(*args):
        (_, rows), gradient = both(*args)
        return rows, sum_over_batch(mesh, gradient) if outer else gradient

    run = over_batch(mesh, local, (WHOLE, ROWS, ROWS), (ROWS, WHOLE)) if outer else local
    rows, gradient = jax.jit(run)(table, ids_BT, weights)
    np.testing.assert_array_equal(rows, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("length", [1, 15])
def test_a_prompt_of_any_length_is_looked_up(length):
    table, ids_BT = jax.random.normal(jax.random.key(0), (48, 8)), jnp.arange(length).reshape(1, length) * 3
    rows = jax.jit(make_lookup(mesh_with(data=2, tensor=4)), static_argnums=(2, 3))(
        table, ids_BT, jnp.dtype("float32"), "VD"
    )
    np.testing.assert_array_equal(rows, table[ids_BT])


def test_the_embedding_is_reduced_once_into_the_residual_streams_shards():
    """And its gradient gathered once; the table itself is not sent, and its gradient stays where it is."""
    mesh = mesh_with(tensor=4)
    both = table_and_gradient(make_lookup(mesh), "VD")
    args = (jnp.ones((V, D)), jnp.zeros((B, T), jnp.int32), jnp.ones((B, T, D)))
    forward = lambda *args: make_lookup(mesh)(*args, jnp.dtype("float32"), "VD")  # noqa: E731
    assert collectives(jax.jit(forward).lower(*args[:2]).compile().as_text()) == {("reduce-scatter", (B, T // 4, D)): 1}
    assert collectives(jax.jit(lambda *args: both(*args)[1]).lower(*args).compile().as_text()) == {
        ("all-gather", (B, T, D)): 1
    }
    gradient = jax.jit(lambda *args: both(*args)[1])(*args)
    assert {shard.data.shape for shard in gradient.addressable_shards} == {(V // 4, D)}


def test_gradients_of_a_table_in_half_precision_add_up_in_f32():
    table, ids_BT = jnp.ones((8, 2)), jnp.zeros((1, 1024), jnp.int32)
    both = table_and_gradient(make_lookup(mesh_with(tensor=4)), "VD", jnp.bfloat16)
    _, gradient = jax.jit(both)(table, ids_BT, jnp.ones((1, 1024, 2)))
    np.testing.assert_array_equal(gradient[0], 1024)
