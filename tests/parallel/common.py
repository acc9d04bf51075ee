"""Meshes, regions over the batch's axes and what a compiled program sends, for the tests of parallel programs."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.axes import BATCH_AXES
from lm.config import ParallelConfig
from lm.parallel.mesh import batch_axes, make_mesh
from lm.parallel.region import region

_OPS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= \(?(\w+)\[([\d,]*)\].* ({_OPS})(?:-start)?\(")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}|\[\d+,1\]<=)")  # over axes of size 1, which some compilers leave in


def mesh_with(**sizes: int) -> Mesh:
    parallel = ParallelConfig(**({"data": 1} | sizes))
    return make_mesh(parallel, jax.devices()[: math.prod(sizes.values())])


def over_batch(mesh: Mesh, function, in_specs, out_specs):
    """Return `function` of the rows of one device of the batch's axes, as the training step calls it."""
    return region(mesh, function, in_specs, out_specs, axes=BATCH_AXES)


def sum_over_batch(mesh: Mesh, tree):
    return jax.lax.psum(tree, batch_axes(mesh))


ROWS, WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()


def collectives(text: str) -> Counter:
    """Count a compiled program's collectives: (operation, shape of its first result) -> number in its text."""
    found = (_COLLECTIVE.search(line) for line in text.splitlines() if not _ALONE.search(line))
    return Counter((m[3], tuple(int(n) for n in m[2].split(",") if n)) for m in found if m)


def assert_close(got, expected, tolerance: float = 1e-5) -> None:
    """Compare trees within `tolerance` of the expected tree's global norm."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(expected)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(norm), rtol=0)
