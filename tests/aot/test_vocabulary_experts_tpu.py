"""The vocabulary-parallel loss and embedding and the experts over devices, compiled for a TPU slice.

As the training step calls them: in a region over the batch's axes, in bf16, with their gradients.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.config import ParallelConfig
from lm.parallel.embedding import make_lookup
from lm.parallel.experts import make_experts
from lm.parallel.loss import make_cross_entropy
from lm.parallel.mesh import make_mesh
from lm.parallel.topology import compile_for, describe
from tests.parallel.common import ROWS, WHOLE, over_batch
from tests.parallel.test_experts import SHARES

B, T, D, V, E, F = 8, 256, 128, 1024, 8, 256
of = jax.ShapeDtypeStruct


def compiled(sizes, function, argnums, shapes, specs):
    """Return the statistics of the gradients of `function(mesh)`; `shapes` and `specs` are trees, one per argument."""
    topology = describe("v5e:2x4")
    mesh = make_mesh(ParallelConfig(**({"data": 1} | sizes)), topology.devices)
    gradients = jax.grad(lambda *args: jnp.sum(function(mesh)(*args).astype(jnp.float32)), argnums)
    run = jax.jit(over_batch(mesh, gradients, specs, tuple(specs[number] for number in argnums)))
    sharded = lambda spec, a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    arguments = jax.tree.map(sharded, specs, shapes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    return compile_for(topology, run, *arguments, optimize=False)


@pytest.mark.aot
@pytest.mark.parametrize(
    "sizes", [{"tensor": 8}, {"fsdp": 2, "context": 2, "tensor": 2}, {"stage": 2, "tensor": 4}], ids=str
)
def test_the_loss_compiles(sizes):
    def loss(mesh):
        run = make_cross_entropy(mesh)
        return lambda *args: run(*args, 1.0, softcap=30.0, chunk=128)[0]

    shapes = (of((B, T, D), "bfloat16"), of((D, V), "float32"), of((B, T), "int32"), of((B, T), "float32"))
    stats = compiled(sizes, loss, (0, 1), shapes, (ROWS, WHOLE, ROWS, ROWS))
    assert stats.fits and stats.collectives["all-gather"] > 0
    assert stats.collectives["all-to-all"] == stats.collectives["collective-permute"] == 0


@pytest.mark.aot
def test_the_embedding_compiles():
    lookup = lambda mesh: lambda *args: make_lookup(mesh)(*args, jnp.dtype("bfloat16"), "VD")  # noqa: E731
    shapes = (of((V, D), "float32"), of((B, T), "int32"))
    stats = compiled({"data": 2, "tensor": 4}, lookup, (0,), shapes, (WHOLE, ROWS))
    assert stats.fits and stats.collectives["all-to-all"] == 0


@pytest.mark.aot
@pytest.mark.parametrize("capacity", [None, 1.25])
@pytest.mark.parametrize("sizes", [{"expert": 8}, {"data": 2, "expert": 2, "tensor": 2}], ids=str)
def test_experts_compile(sizes, capacity):
    def experts(mesh):
        options = {"activation": "swiglu", "capacity": capacity, "implementation": "ragged"}
        return lambda x_BTD, gates_BTk, kernels, ids_BTk: make_experts(mesh)(
            x_BTD, ids_BTk, gates_BTk, kernels, **options
        )[0]

    kernels = {name: of((E, D, F) if name != "down" else (E, F, D), "float32") for name in SHARES}
    shapes = (of((B, T, D), "bfloat16"), of((B, T, 2), "float32"), kernels, of((B, T, 2), "int32"))
    stats = compiled(sizes, experts, (0, 1, 2), shapes, (ROWS, ROWS, SHARES, ROWS))
    assert stats.fits
    if capacity:  # there and back, forwards and backwards
        assert stats.collectives["all-to-all"] == 4
    else:
        assert stats.collectives["all-to-all"] == 0 and stats.collectives["all-gather"] > 0
