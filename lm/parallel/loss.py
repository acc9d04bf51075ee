"""The cross-entropy in a region: each device's own tokens and part of the vocabulary, one reduction at the end.

Under plain `jit` the chunks of the flattened tokens would make every device gather the hidden
states and compute the whole loss.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.axes import MODEL_AXES, RESIDUAL_AXES, TOKEN_AXES, partition
from lm.kernels.cross_entropy import cross_entropy
from lm.parallel.region import free_axes, region


def make_cross_entropy(mesh: Mesh) -> Callable:
    """Return `lm.kernels.cross_entropy.cross_entropy` for arrays sharded over the mesh.

    Rows are split over the batch's axes and the pipeline's stages, tokens over `context`, and the vocabulary over
    `tensor`, each where it divides. In a region over the batch's axes the loss is that of the region's own rows.
    """
    if mesh.size == 1:
        return cross_entropy

    def sharded(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, *, return_log_z=False, **options):
        free = free_axes(mesh)
        tokens = partition("BT", targets_BT.shape, TOKEN_AXES, free)
        summed = tuple(axis for axes in tokens for axis in axes or ())
        vocabulary = partition("DV", head_DV.shape, MODEL_AXES, free)
        vocab_axis = "tensor" if vocabulary[1] else None
        # Each device needs all tokens for its part of the vocabulary. They are gathered here, so that their
        # gradients go back the same way, reduced and scattered, and not as whole sums.
        inputs = tokens
        if vocab_axis:
            inputs = (tokens[0], *partition("T", targets_BT.shape[1:], RESIDUAL_AXES, free))
        is_scattered = "tensor" in (inputs[1] or ())

        def local(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale):
            if is_scattered:
                hidden_BTD = jax.lax.all_gather(hidden_BTD, "tensor", axis=1, tiled=True)
            loss, *per_token = cross_entropy(
                hidden_BTD,
                head_DV,
                targets_BT,
                weights_BT,
                grad_scale,
                return_log_z=return_log_z,
                vocab_axis=vocab_axis,
                **options,
            )
            return jax.lax.psum(loss, summed), *per_token

        tokens, whole = PartitionSpec(*tokens), PartitionSpec()
        in_specs = (PartitionSpec(*inputs), PartitionSpec(*vocabulary), tokens, tokens, whole)
        out_specs = (whole, tokens, tokens) if return_log_z else (whole, tokens)
        return region(mesh, local, in_specs, out_specs)(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale)

    return sharded
