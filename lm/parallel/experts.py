"""The experts in a region: each device sorts its own tokens.

Under plain `jit` the sort would gather all tokens on every device. With expert parallelism tokens travel to their
expert's device and back (`lm.kernels.experts.spread_experts`); tensor parallelism splits each expert's width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from lm.axes import ACTIVATION_AXES, BATCH_AXES, MODEL_AXES, RESIDUAL_AXES, partition
from lm.kernels.experts import experts, spread_experts
from lm.parallel.region import free_axes, manual_axes, region


def make_experts(mesh: Mesh) -> Callable:
    """Return `lm.kernels.experts.experts` for arrays sharded over the mesh.

    Rows are split over the batch's axes, tokens over `context`, the kernels' E over `expert` and their F over
    `tensor`, where that divides. In a region over the batch's axes the kernels are its own E / `expert`, and
    `taken_E`, of all E, counts the region's own tokens.
    """
    if mesh.size == 1:
        return experts

    def sharded(x_BTD, ids_BTk, gates_BTk, kernels, **options):
        free = free_axes(mesh)
        # Rows that do not divide, of a prompt or two, are on all devices, and their tokens computed by all.
        tokens = partition("BT", x_BTD.shape[:2], ACTIVATION_AXES, free)
        summed = tuple(axis for axes in tokens for axis in axes or ())
        dims = {"up": "EDF", "gate": "EDF", "down": "EFD"}
        of_kernels = {name: partition(dims[name], kernel.shape, MODEL_AXES, free) for name, kernel in kernels.items()}
        is_split = of_kernels["up"][2] is not None  # over `tensor`: each device has a part of every sum over F
        inputs = (tokens[0], *partition("T", x_BTD.shape[1:2], RESIDUAL_AXES, free)) if is_split else tokens
        is_scattered = is_split and "tensor" in (inputs[1] or ())
        if mesh.shape["expert"] == 1:
            run = experts
        else:
            has_own_tokens = "expert" in manual_axes() or "expert" in (tokens[0] or ())
            run = functools.partial(spread_experts, axis="expert", has_own_tokens=has_own_tokens)

        def local(x_BTD, ids_BTk, gates_BTk, kernels):
            if is_scattered:
                x_BTD = jax.lax.all_gather(x_BTD, "tensor", axis=1, tiled=True)
            y_BTD, taken_E = run(x_BTD, ids_BTk, gates_BTk, kernels, **options)
            if is_scattered:
                y_BTD = jax.lax.psum_scatter(y_BTD, "tensor", scatter_dimension=1, tiled=True)
            elif is_split:
                y_BTD = jax.lax.psum(y_BTD, "tensor")
            return y_BTD, jax.lax.psum(taken_E, summed)

        rows, split = PartitionSpec(*inputs), PartitionSpec(*tokens)
        in_specs = (rows, split, split, {name: PartitionSpec(*spec) for name, spec in of_kernels.items()})
        return region(mesh, local, in_specs, (rows, PartitionSpec()))(x_BTD, ids_BTk, gates_BTk, kernels)

    return sharded


def sum_over_batch(sums: Any) -> Any:
    """Return, of a tree of sums over the rows here, the sums over all rows.

    They are others only in a region over the batch's axes; elsewhere the compiler sums over all devices.
    """
    sizes = jax.sharding.get_abstract_mesh().shape  # XLA refuses a sum in a region whose axes are all of size 1
    return jax.lax.psum(sums, tuple(axis for axis in BATCH_AXES if axis in manual_axes() and sizes[axis] > 1))
