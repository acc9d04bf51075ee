"""Meshes, the region over the whole mesh, and what a compiled program sends, for the tests of parallel programs."""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.axes import BATCH_AXES
from lm.config import Config, ParallelConfig
from lm.kernels.flash_attention import flash_attention
from lm.objectives import next_token
from lm.parallel.local import local_model
from lm.parallel.mesh import batch_spec, make_mesh
from lm.parallel.region import region
from lm.parallel.ring import ring_attention
from lm.parallel.ulysses import ulysses_attention
from tests.train.common import fake_batch, numpy_batch

# How arrays `[B, T, …]` lie on the devices; each stage has rows of its own.
_ROWS = ("stage", *BATCH_AXES)
WHOLE, ROWS, TOKENS = PartitionSpec(), PartitionSpec(_ROWS), PartitionSpec(_ROWS, "context")
RESIDUAL = PartitionSpec(_ROWS, ("context", "tensor"))
HEADS = PartitionSpec(_ROWS, "context", "tensor")

_OPS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= \(?(\w+)\[([\d,]*)\].* ({_OPS})(?:-start)?\(")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}|\[\d+,1\]<=)")  # over axes of size 1, which some compilers leave in


def mesh_with(**sizes: int) -> Mesh:
    parallel = ParallelConfig(**({"data": 1} | sizes))
    return make_mesh(parallel, jax.devices()[: math.prod(sizes.values())])


def summed(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """Return the sums of the devices' own arrays over each axis that does not divide them."""

    def one(a: jax.Array, spec: PartitionSpec) -> jax.Array:
        split = set(jax.tree.leaves(tuple(spec)))
        return jax.lax.psum(a, tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis not in split))

    return jax.tree.map(one, tree, specs)


def device_attention(mesh: Mesh, method: str) -> Callable:
    """Return attention of sequences divided over `context`, as a device calls it in the region."""
    kind = mesh.devices.flat[0].device_kind
    if method == "ring":
        return functools.partial(ring_attention, device_kind=kind)
    return functools.partial(ulysses_attention, functools.partial(flash_attention, device_kind=kind))


def attention_over(mesh: Mesh, method: str, around: Callable = lambda attend: attend, **options) -> Callable:
    """Return attention of whole arrays, in zigzag order; `around` wraps what a device calls."""
    attend = around(functools.partial(device_attention(mesh, method), **options))

    def attention(q_BTNH, k_BTKH, v_BTKH, ids_BT=None):
        local = lambda q, k, v, ids: attend(q, k, v, q_segment_ids=ids, kv_segment_ids=ids)  # noqa: E731
        return region(mesh, local, (HEADS, HEADS, HEADS, TOKENS), HEADS)(q_BTNH, k_BTKH, v_BTKH, ids_BT)

    return attention


def model_gradients(config: Config, mesh: Mesh, params: Any, micro: int = 1) -> tuple[jax.Array, Any, Any]:
    """Return the loss, its sums and gradients of one batch in `micro` micro-batches, as all devices together have them.

    Each device counts its share of the loss; the gradients are added up here, over the axes that do not divide them.
    """
    in_pipeline = mesh.shape["stage"] > 1
    local = local_model(config, mesh, micro_batches=micro)
    specs = local.zero.parameter_specs

    def of_rows(params, batch):
        options = {"grad_scale": 1 / numpy_batch(0)["weights_BT"].sum(), "dropout_key": None}
        objective = functools.partial(local.objective, next_token, batch=batch, **options)
        (loss, sums), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return loss, sums, grads

    def own(params, batch):
        if in_pipeline:
            parts = [jax.tree.map(lambda a: a.reshape(-1, a.shape[2]), batch)]
        else:
            parts = [jax.tree.map(lambda a, m=m: a[m], batch) for m in range(micro)]
        loss, sums, grads = jax.tree.map(lambda *a: sum(a), *[of_rows(params, part) for part in parts])
        return summed(mesh, loss, WHOLE), local.zero.sum(sums), summed(mesh, grads, specs)

    run = jax.jit(local.zero.local(own, (specs, batch_spec()), (WHOLE, WHOLE, specs)))
    shardings = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs)
    return run(jax.device_put(params, shardings), fake_batch(mesh, 0, micro))


def collectives(text: str) -> Counter:
    """Count a compiled program's collectives: (operation, shape of its first result) -> number in its text."""
    found = (_COLLECTIVE.search(line) for line in text.splitlines() if not _ALONE.search(line))
    return Counter((m[3], tuple(int(n) for n in m[2].split(",") if n)) for m in found if m)


def assert_close(got, expected, tolerance: float = 1e-5) -> None:
    """Compare trees within `tolerance` of the expected tree's global norm."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(expected)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(norm), rtol=0)
