"""The experts in a region: each device sorts its own tokens.

Under plain `jit` the sort would gather all tokens on every device. Experts spread over devices will be
laid over the same function: tokens travel to their expert's device before it and back after it.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.kernels.experts import experts
from lm.parallel.mesh import batch_axes, batch_shards
from lm.parallel.region import manual_axes, region


def make_experts(mesh: Mesh) -> Callable:
    """Return `lm.kernels.experts.experts` for arrays sharded over the mesh's batch axes."""
    if mesh.size == 1:
        return experts

    def sharded(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        # A prompt or two: every device computes all of them.
        rows = batch_axes(mesh) if manual_axes() or x_BTD.shape[0] % batch_shards(mesh) == 0 else ()
        summed = tuple(axis for axis in rows if axis not in manual_axes())

        def local(x_BTD, ids_BTk, gates_BTk, kernels):
            y_BTD, taken_E = experts(x_BTD, ids_BTk, gates_BTk, kernels, **options)
            return y_BTD, jax.lax.psum(taken_E, summed)

        split, whole = PartitionSpec(rows), PartitionSpec()
        in_specs = (split, split, split, dict.fromkeys(kernels, whole))
        return region(mesh, local, in_specs, (split, whole))(x_BTD, ids_BTk, gates_BTk, kernels)

    return sharded
