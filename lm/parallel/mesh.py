"""The device mesh, and shardings derived from the tables of `lm/axes.py`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.axes import ACTIVATION_AXES, MESH_AXES, OPTIMIZER_AXES, PARAMETER_AXES, PARAMETERS, partition
from lm.config import ParallelConfig
from lm.optim import state_letters
from lm.tree import map_with_path


def make_mesh(parallel: ParallelConfig, devices=None) -> Mesh:
    """Return the mesh over all devices (or the ones given); sizes are resolved, none is -1."""
    shape = tuple(getattr(parallel, axis) for axis in MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def named_sharding(mesh: Mesh, dims: str, shape: tuple[int, ...], table: Mapping) -> NamedSharding:
    """Return the sharding of an array with these dimension letters under one of the three tables."""
    return NamedSharding(mesh, PartitionSpec(*partition(dims, shape, table, dict(mesh.shape))))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """Return the sharding of each parameter (arrays or shapes) by the parameter table."""
    return map_with_path(lambda path, leaf: named_sharding(mesh, PARAMETERS[path], leaf.shape, PARAMETER_AXES), params)


def optimizer_shardings(mesh: Mesh, opt_state: Any) -> Any:
    """Return the sharding of each optimizer leaf by the optimizer table; counters are replicated.

    A leaf's letters come from its path (`lm.optim.state_letters`); where its rank is not theirs it is
    replicated too (what an optimizer of one's own keeps).
    """

    def one(path: str, leaf) -> NamedSharding:
        dims = state_letters(path)
        if dims is None or len(dims) != leaf.ndim:
            return replicated(mesh)
        return named_sharding(mesh, dims, leaf.shape, OPTIMIZER_AXES)

    return map_with_path(one, opt_state)


def make_constrain(mesh: Mesh) -> Callable[[jax.Array, str], jax.Array]:
    """Return `constrain(x, "BTD")`, which lays the activation table's sharding over an activation."""

    def constrain(x: jax.Array, dims: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, named_sharding(mesh, dims, x.shape, ACTIVATION_AXES))

    return constrain


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Return the mesh axes that the batch is sharded over."""
    return tuple(axis for axis in ACTIVATION_AXES["B"] if axis in mesh.shape)


def place_batch(
    mesh: Mesh,
    shape: tuple[int, int, int],
    build: Callable[[np.ndarray, slice], Mapping[str, np.ndarray]],
) -> dict[str, jax.Array]:
    """Place one global batch on the devices, each host building only what its devices hold.

    Args:
      mesh: the device mesh.
      shape: `(A, B / A, T)`: micro-batches, rows in each, tokens.
      build: `build(rows, columns)` returns arrays `[len(rows), T]` of those rows of the global batch.

    Returns:
      The arrays as `[A, B / A, T]`, keyed as `build` keys them. Micro-batch `a` holds rows
      `a * B / A` onwards: the loader feeds them in place, because reshaping a sharded batch
      into micro-batches would move rows between devices.
    """
    sharding = named_sharding(mesh, "ABT", shape, ACTIVATION_AXES)
    built: dict[tuple, Mapping[str, np.ndarray]] = {}

    def local(index: tuple[slice, slice, slice]) -> Mapping[str, np.ndarray]:
        micro, rows, columns = (range(*part.indices(size)) for part, size in zip(index, shape, strict=True))
        key = (micro, rows, columns)
        if key not in built:
            wanted = np.add.outer(np.asarray(micro) * shape[1], np.asarray(rows)).reshape(-1)
            part = build(wanted, slice(columns.start, columns.stop))
            built[key] = {name: a.reshape(len(micro), len(rows), len(columns)) for name, a in part.items()}
        return built[key]

    indices = sharding.addressable_devices_indices_map(shape)
    names = list(local(next(iter(indices.values()))))
    return {
        name: jax.make_array_from_callback(shape, sharding, lambda index, name=name: local(index)[name])
        for name in names
    }
