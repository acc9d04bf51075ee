"""The model in the region: its gradients, whatever it is made of, are those of one device."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.config import BIASES
from lm.model import Transformer
from lm.parallel.local import local_model
from lm.parallel.mesh import make_mesh
from tests.parallel.common import assert_close, mesh_with, model_gradients
from tests.train.common import small_config

MODELS = {
    "biases": {
        "model.bias": str(BIASES),
        "model.norm": "layernorm",
        "model.positions": "learned",
        "model.tie_embeddings": "False",
        "model.activation": "gelu",
        "model.qk_norm": "True",
    },
    "one key head": {"model.value_embeddings": "True", "model.num_kv_heads": "1", "model.norm_placement": "both"},
}
MESHES = [{"data": 2, "tensor": 4}, {"fsdp": 2, "context": 2, "tensor": 2}, {"stage": 2, "fsdp": 2, "tensor": 2}]


@functools.cache  # the same for all meshes
def on_one_device(name):
    """Return parameters of which none is zero, as biases are at first, the loss, and its gradients."""
    one = small_config(**MODELS[name])
    params = Transformer(one.model, one.precision).init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.1 * jax.random.normal(key, a.shape) for key, a in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    loss, _, grads = model_gradients(one, mesh_with(data=1), params, micro=2)
    return params, loss, grads


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_parameters_gradient_is_that_of_one_device(name, sizes):
    """Of parameters that are whole over `tensor` as of those that are not."""
    parallel = {"parallel.data": "1", "parallel.zero": "3", "optimizer.accumulation_steps": "2"}
    parallel |= {f"parallel.{axis}": str(size) for axis, size in sizes.items()}
    config = small_config(math.prod(sizes.values()), **MODELS[name] | parallel)
    params, loss, grads = on_one_device(name)
    got, _, got_grads = model_gradients(config, mesh_with(**sizes), params, micro=2)
    assert float(got) == pytest.approx(float(loss), rel=1e-6)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads), strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.parametrize("length", [16, 15])
def test_each_part_of_the_residual_stream_is_dropped_by_a_key_of_its_own(length):
    """The devices of `tensor` hold parts of a sequence that divides, and the whole of one that does not."""
    config = small_config(devices=4, **{"parallel.tensor": "2", "parallel.data": "2"})
    mesh = make_mesh(config.parallel, jax.devices()[:4])
    local = local_model(config, mesh)

    def bits(key):
        return jax.random.key_data(local.zero.token_key(key, length))[None, None]

    keys = local.zero.local(bits, PartitionSpec(), PartitionSpec("data", "tensor"))(jax.random.key(0))
    different = {tuple(np.asarray(key)) for key in keys.reshape(4, -1)}
    assert len(different) == (4 if length == 16 else 2)
