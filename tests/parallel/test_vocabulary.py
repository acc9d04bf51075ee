"""The loss and the embedding with their vocabulary over devices: as on one, and what is sent for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.axes import MODEL_AXES, partition
from lm.kernels.cross_entropy import cross_entropy
from lm.kernels.lookup import lookup
from lm.parallel.local import local_model
from lm.parallel.region import region
from tests.parallel.common import HEADS, RESIDUAL, TOKENS, WHOLE, assert_close, collectives, mesh_with, summed
from tests.train.common import small_config

B, T, D, V = 4, 16, 8, 48


def local_with(mesh, vocab_size=V):
    """A model on the mesh, for its loss and its lookup."""
    config = small_config(**{"model.vocab_size": str(vocab_size)})
    return local_model(config, mesh, micro_batches=mesh.shape["stage"])


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


def on_mesh(mesh, args, grads_of=(0, 1, 2, 3), **options):
    """Return a jitted function of whole arrays like these: it sums the loss and the gradients of all devices."""
    tensor, (length, num_columns) = mesh.shape["tensor"], (args[0].shape[1], args[1].shape[1])
    hidden = RESIDUAL if length % (tensor * mesh.shape["context"]) == 0 else TOKENS
    head = PartitionSpec(None, "tensor" if num_columns % tensor == 0 else None)
    specs = (hidden, head, TOKENS, WHOLE, TOKENS)

    def own_share(*args, **options):
        loss, *per_token = local_with(mesh, num_columns).cross_entropy(*args, **options)
        return loss / tensor, *per_token  # the same on all devices of `tensor`

    def local(*args):
        (loss, per_token), gradients = loss_and_gradients(own_share, **options)(*args)
        gradients = summed(mesh, tuple(gradients[i] for i in grads_of), tuple(specs[i] for i in grads_of))
        return (summed(mesh, loss, WHOLE), per_token), gradients

    out_specs = ((WHOLE, [TOKENS, TOKENS]), tuple(specs[i] for i in grads_of))
    return jax.jit(region(mesh, local, specs, out_specs))


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


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_loss_and_its_gradients_are_those_of_one_device(sizes):
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs()
    args = (hidden_BTD, head_DV, weights_BT, 0.25, targets_BT)
    options = {"softcap": 3.0, "z_loss": 0.1, "chunk": 7}  # 7 divides no number of tokens here
    expected = jax.jit(loss_and_gradients(cross_entropy, **options))(*args)
    got = on_mesh(mesh_with(**sizes), args, **options)(*args)
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
    got = on_mesh(mesh_with(data=2, tensor=4), args, **options)(*args)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-6)
    for a, b in zip(got[1], expected[1], strict=True):
        assert_close(a, b)


def test_large_logits_of_one_device_do_not_overflow():
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs()
    args = (hidden_BTD, head_DV.at[:, -6:].multiply(1e3), weights_BT, 0.25, targets_BT)
    expected = jax.jit(loss_and_gradients(cross_entropy))(*args)
    got = on_mesh(mesh_with(tensor=8), args)(*args)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-6)
    assert np.isfinite(got[0][0]) and got[0][0] > 1e3
    for a, b in zip(got[1], expected[1], strict=True):
        assert_close(a, b)


def test_a_chunk_of_the_loss_exchanges_two_numbers_per_token():
    """In the scan's body one all-gather; outside it the hidden states in, their gradients back, and scalars."""
    hidden_BTD, head_DV, weights_BT, targets_BT = loss_inputs()
    args = (hidden_BTD, head_DV, weights_BT, 0.25, targets_BT)
    run = on_mesh(mesh_with(tensor=4), args, grads_of=(0, 1), chunk=8)
    sent = collectives(run.lower(*args).compile().as_text())
    assert sent[("all-gather", (4, 2, 8))] == 1
    large = {key: count for key, count in sent.items() if len(key[1]) > 0 and key != ("all-gather", (4, 2, 8))}
    assert large == {("all-gather", (B, T, D)): 1, ("reduce-scatter", (B, T // 4, D)): 1}, sent


def table_and_gradient(lookup, letters, dtype=jnp.float32):
    """Return a function to (rows, their gradient); `share` is how much of the loss a device counts."""

    def loss(table, ids_BT, weights, share):
        rows = lookup(table, ids_BT, jnp.dtype(dtype), letters)
        return share * jnp.sum(rows.astype(jnp.float32) * weights), rows

    def both(table, ids_BT, weights, share=1.0):
        gradient, rows = jax.grad(loss, has_aux=True)(table, ids_BT, weights, share)
        return rows, gradient

    return both


def specs_of(mesh, letters, shape, length=T):
    """Return how a table lies on the devices, how its rows do, and the share of the loss that each counts."""
    tensor = mesh.shape["tensor"]
    table = PartitionSpec(*partition(letters, shape, MODEL_AXES, dict(mesh.shape)))
    if letters.endswith("D") and length % (mesh.shape["context"] * tensor) == 0:
        return table, RESIDUAL, 1.0
    if "K" in letters and shape[1] % tensor == 0:
        return table, HEADS, 1.0
    return table, TOKENS, 1 / tensor


def lookup_on(mesh, letters, shape, length=T, dtype=jnp.float32):
    """Return a jitted function of whole arrays to (rows, gradient)."""
    table, rows, share = specs_of(mesh, letters, shape, length)
    both = table_and_gradient(local_with(mesh, shape[0]).model.layout.lookup, letters, dtype)

    def local(*args):
        own, gradient = both(*args, share)
        return own, summed(mesh, gradient, table)

    return jax.jit(region(mesh, local, (table, TOKENS, rows), (rows, table)))


@pytest.mark.parametrize("letters, shape", [("VD", (48, 8)), ("PD", (40, 8)), ("VKH", (48, 4, 2)), ("VKH", (48, 1, 8))])
@pytest.mark.parametrize("sizes", [MESHES[1], MESHES[3], MESHES[4], MESHES[6]], ids=str)
def test_rows_and_the_tables_gradient_are_those_of_one_device(sizes, letters, shape):
    """A table over its rows, one that is whole, one over its heads, and one with a head for all."""
    keys = jax.random.split(jax.random.key(1), 3)
    table, weights = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (B, T, *shape[1:]))
    ids_BT = jax.random.randint(keys[2], (B, T), 0, shape[0]).at[:, 5].set(shape[0] - 1).at[:, 6].set(0)
    expected, expected_gradient = table_and_gradient(lookup, letters)(table, ids_BT, weights)
    rows, gradient = lookup_on(mesh_with(**sizes), letters, shape)(table, ids_BT, weights)
    np.testing.assert_array_equal(rows, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("vocab_size, length", [(48, 1), (48, 15), (46, 16), (46, 15)])
def test_a_vocabulary_and_a_length_that_do_not_divide_are_looked_up_whole(vocab_size, length):
    keys = jax.random.split(jax.random.key(1), 2)
    table, weights = jax.random.normal(keys[0], (vocab_size, D)), jax.random.normal(keys[1], (2, length, D))
    ids_BT = jnp.arange(2 * length).reshape(2, length)
    expected, expected_gradient = table_and_gradient(lookup, "VD")(table, ids_BT, weights)
    run = lookup_on(mesh_with(data=2, tensor=4), "VD", table.shape, length)
    rows, gradient = run(table, ids_BT, weights)
    np.testing.assert_array_equal(rows, expected)
    assert_close(gradient, expected_gradient)


def test_the_embedding_is_reduced_once_into_the_residual_streams_shards():
    """And its gradient gathered once; the table itself is not sent, and its gradient stays where it is."""
    mesh = mesh_with(tensor=4)
    table_spec, rows_spec, _ = specs_of(mesh, "VD", (V, D))
    args = (jnp.ones((V, D)), jnp.zeros((B, T), jnp.int32), jnp.ones((B, T, D)))
    run = partial(local_with(mesh).model.layout.lookup, dtype=jnp.dtype("float32"), letters="VD")
    forward = jax.jit(region(mesh, run, (table_spec, TOKENS), rows_spec))
    assert collectives(forward.lower(*args[:2]).compile().as_text()) == {("reduce-scatter", (B, T // 4, D)): 1}
    backward = jax.jit(lambda *args: lookup_on(mesh, "VD", (V, D))(*args)[1])
    assert collectives(backward.lower(*args).compile().as_text()) == {("all-gather", (B, T, D)): 1}
    assert {shard.data.shape for shard in backward(*args).addressable_shards} == {(V // 4, D)}


def test_gradients_of_a_table_in_half_precision_add_up_in_f32():
    table, ids_BT = jnp.ones((8, 2)), jnp.zeros((1, 1024), jnp.int32)
    run = lookup_on(mesh_with(tensor=4), "VD", table.shape, 1024, jnp.bfloat16)
    _, gradient = run(table, ids_BT, jnp.ones((1, 1024, 2)))
    np.testing.assert_array_equal(gradient[0], 1024)
