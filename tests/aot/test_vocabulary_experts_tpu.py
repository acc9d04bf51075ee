"""The vocabulary-parallel loss and embedding and the experts over devices, compiled for a TPU slice.

As a device calls them in the region over the whole mesh, in bf16, with its own gradients.
"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.config import ParallelConfig
from lm.parallel.local import local_model
from lm.parallel.mesh import make_mesh
from lm.parallel.region import region
from lm.parallel.topology import describe
from tests.parallel.common import RESIDUAL, ROWS, TOKENS, collectives
from tests.parallel.test_experts import SHARES
from tests.train.common import small_config

B, T, D, V, E, F = 8, 256, 128, 4096, 8, 256
of = jax.ShapeDtypeStruct


def sent(sizes, function, argnums, shapes, specs):
    """Return the collectives of the gradients of `function(local)`; `shapes` and `specs` are trees, one per argument."""
    mesh = make_mesh(ParallelConfig(**({"data": 1} | sizes)), describe("v5e:2x4").devices)
    config = small_config(**{"model.vocab_size": str(V), "model.num_experts": str(E)})
    run = function(local_model(config, mesh, micro_batches=mesh.shape["stage"]))
    gradients = jax.grad(lambda *args: jnp.sum(jnp.sin(run(*args).astype(jnp.float32))), argnums)
    program = jax.jit(region(mesh, gradients, specs, tuple(specs[number] for number in argnums)))
    sharded = lambda spec, a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    arguments = jax.tree.map(sharded, specs, shapes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    compiled = program.lower(*arguments).compile(compiler_options={"optimization_level": 9})  # XLA's O0: faster
    return collectives(compiled.as_text())


def kinds(sent) -> set[str]:
    return {kind for kind, _ in sent}


def largest(sent) -> int:
    return max(math.prod(shape) for _, shape in sent)


@pytest.mark.aot
@pytest.mark.parametrize(
    "sizes", [{"tensor": 8}, {"fsdp": 2, "context": 2, "tensor": 2}, {"stage": 2, "tensor": 4}], ids=str
)
def test_the_loss_sends_hidden_states_and_two_numbers_per_token(sizes):
    def loss(local):
        return lambda *args: local.cross_entropy(*args, 1.0, softcap=30.0, chunk=128)[0]

    shapes = (of((B, T, D), "bfloat16"), of((D, V), "float32"), of((B, T), "int32"), of((B, T), "float32"))
    found = sent(sizes, loss, (0, 1), shapes, (RESIDUAL, PartitionSpec(None, "tensor"), TOKENS, TOKENS))
    assert ("all-gather", (sizes["tensor"], 2, 128)) in found, found
    assert kinds(found) <= {"all-gather", "reduce-scatter", "all-reduce"}, found
    rows_of_a_device = B * T * D * sizes["tensor"] // 8
    assert largest(found) <= rows_of_a_device, "and nothing of the vocabulary's size"


@pytest.mark.aot
def test_the_embedding_sends_rows_and_not_the_table():
    def lookup(local):
        return functools.partial(local.model.layout.lookup, dtype=jnp.dtype("bfloat16"), letters="VD")

    shapes = (of((V, D), "float32"), of((B, T), "int32"))
    found = sent({"data": 2, "tensor": 4}, lookup, (0,), shapes, (PartitionSpec("tensor"), TOKENS))
    assert kinds(found) <= {"all-gather", "reduce-scatter", "all-reduce"}, found
    assert found.total() == 2, f"{found}: the rows' sums, and their gradients"
    assert largest(found) <= B * T * D // 2


@pytest.mark.aot
@pytest.mark.parametrize("capacity", [None, 1.25])
@pytest.mark.parametrize("sizes", [{"expert": 8}, {"data": 2, "expert": 2, "tensor": 2}], ids=str)
def test_experts_compile(sizes, capacity):
    def experts(local):
        run = functools.partial(local.model.layout.experts, activation="swiglu", capacity=capacity)
        return lambda x_BTD, gates_BTk, kernels, ids_BTk: run(x_BTD, ids_BTk, gates_BTk, kernels)[0]

    kernels = {name: of((E, D, F) if name != "down" else (E, F, D), "float32") for name in SHARES}
    shapes = (of((B, T, D), "bfloat16"), of((B, T, 2), "float32"), kernels, of((B, T, 2), "int32"))
    found = sent(sizes, experts, (0, 1, 2), shapes, (ROWS, ROWS, SHARES, ROWS))
    count = {kind: sum(number for (other, _), number in found.items() if other == kind) for kind in kinds(found)}
    if capacity:  # there and back, forwards and backwards
        assert count == {"all-to-all": 4}
    else:
        assert "all-to-all" not in count and count["all-gather"] > 0
