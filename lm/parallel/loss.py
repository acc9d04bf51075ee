"""The cross-entropy under `shard_map`: each device's own tokens, one reduction at the end.

Under plain `jit` the chunks of the flattened tokens would make every device gather the hidden
states and compute the whole loss.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.kernels.cross_entropy import cross_entropy
from lm.parallel.mesh import batch_axes


def make_cross_entropy(mesh: Mesh) -> Callable:
    """Return `lm.kernels.cross_entropy.cross_entropy` for arrays sharded over the mesh's batch axes."""
    axes = batch_axes(mesh)
    if mesh.size == 1:
        return cross_entropy

    def sharded(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, *, return_log_z=False, **options):
        def local(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale):
            # `pcast` makes the head vary over the devices; its transpose is the one reduction of the gradient.
            head_DV, grad_scale = (jax.lax.pcast(x, axes, to="varying") for x in (head_DV, grad_scale))
            loss, *per_token = cross_entropy(
                hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, return_log_z=return_log_z, **options
            )
            return jax.lax.psum(loss, axes), *per_token

        rows, whole = PartitionSpec(axes), PartitionSpec()
        out_specs = (whole, rows, rows) if return_log_z else (whole, rows)
        return jax.shard_map(local, mesh=mesh, in_specs=(rows, whole, rows, rows, whole), out_specs=out_specs)(
            hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale
        )

    return sharded
