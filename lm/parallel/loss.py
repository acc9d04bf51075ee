"""The cross-entropy in a region: each device's own tokens, one reduction at the end.

Under plain `jit` the chunks of the flattened tokens would make every device gather the hidden
states and compute the whole loss.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.kernels.cross_entropy import cross_entropy
from lm.parallel.mesh import batch_axes
from lm.parallel.region import manual_axes, region


def make_cross_entropy(mesh: Mesh) -> Callable:
    """Return `lm.kernels.cross_entropy.cross_entropy` for arrays sharded over the mesh's batch axes.

    In a region over the batch's axes the loss is that of the region's own rows.
    """
    if mesh.size == 1:
        return cross_entropy

    def sharded(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, *, return_log_z=False, **options):
        summed = tuple(axis for axis in batch_axes(mesh) if axis not in manual_axes())

        def local(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale):
            loss, *per_token = cross_entropy(
                hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, return_log_z=return_log_z, **options
            )
            return jax.lax.psum(loss, summed), *per_token

        rows, whole = PartitionSpec(batch_axes(mesh)), PartitionSpec()
        out_specs = (whole, rows, rows) if return_log_z else (whole, rows)
        return region(mesh, local, (rows, whole, rows, rows, whole), out_specs)(
            hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale
        )

    return sharded
