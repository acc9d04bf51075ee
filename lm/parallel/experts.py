"""The experts under `shard_map`: each device sorts its own tokens.

Under plain `jit` the sort would gather all tokens on every device. Experts spread over devices will be
laid over the same function: tokens travel to their expert's device before it and back after it.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.kernels.experts import experts
from lm.parallel.mesh import batch_axes


def make_experts(mesh: Mesh) -> Callable:
    """Return `lm.kernels.experts.experts` for arrays sharded over the mesh's batch axes."""
    if mesh.size == 1:
        return experts
    axes = batch_axes(mesh)
    shards = math.prod(mesh.shape[axis] for axis in axes)

    def sharded(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        if x_BTD.shape[0] % shards:  # a prompt or two: every device computes all of them
            return experts(x_BTD, ids_BTk, gates_BTk, kernels, **options)

        def local(x_BTD, ids_BTk, gates_BTk, kernels):
            kernels = {name: jax.lax.pcast(kernel, axes, to="varying") for name, kernel in kernels.items()}
            y_BTD, taken_E = experts(x_BTD, ids_BTk, gates_BTk, kernels, **options)
            return y_BTD, jax.lax.psum(taken_E, axes)

        rows, whole = PartitionSpec(axes), PartitionSpec()
        specs = (rows, rows, rows, dict.fromkeys(kernels, whole))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(rows, whole))(
            x_BTD, ids_BTk, gates_BTk, kernels
        )

    return sharded
