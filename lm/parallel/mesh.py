"""The device mesh, and shardings derived from the tables of `lm/axes.py`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.axes import ACTIVATION_AXES, MESH_AXES, PARAMETERS, partition
from lm.config import ParallelConfig
from lm.optim import state_letters
from lm.parallel.columns import is_split, zigzag
from lm.tree import map_with_path


def make_mesh(parallel: ParallelConfig, devices=None) -> Mesh:
    """Return the mesh over all devices (or the ones given); sizes are resolved, none is -1."""
    shape = tuple(getattr(parallel, axis) for axis in MESH_AXES)
    types = (AxisType.Auto,) * len(shape)
    devices = jax.devices() if devices is None else devices
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        # The slices' axis over the network between them, all others inside a slice.
        across = tuple(size if axis == "slices" else 1 for axis, size in zip(MESH_AXES, shape, strict=True))
        within = tuple(1 if axis == "slices" else size for axis, size in zip(MESH_AXES, shape, strict=True))
        placed = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)
    # As `jax.make_mesh`, which refuses axes that are a part of a torus dimension (8 of 16 chips of a 4x4x4).
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=types)


def named_sharding(mesh: Mesh, dims: str, shape: tuple[int, ...], table: Mapping) -> NamedSharding:
    """Return the sharding of an array with these dimension letters under a table of `lm/axes.py`."""
    return NamedSharding(mesh, PartitionSpec(*partition(dims, shape, table, dict(mesh.shape))))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, params: Any, table: Mapping) -> Any:
    """Return the sharding of each parameter, or of what is shaped like it, under a table of `lm/axes.py`."""
    return map_with_path(lambda path, leaf: named_sharding(mesh, PARAMETERS[path], leaf.shape, table), params)


def optimizer_shardings(mesh: Mesh, opt_state: Any, table: Mapping) -> Any:
    """Return the sharding of each optimizer leaf under a table; counters are replicated.

    A leaf's letters come from its path (`lm.optim.state_letters`); where its rank is not theirs it is
    replicated too (what an optimizer of one's own keeps).
    """

    def one(path: str, leaf) -> NamedSharding:
        dims = state_letters(path)
        if dims is None or len(dims) != leaf.ndim:
            return replicated(mesh)
        return named_sharding(mesh, dims, leaf.shape, table)

    return map_with_path(one, opt_state)


def batch_spec() -> PartitionSpec:
    """Return how a batch's arrays `[A, B / A, T]` are divided over the mesh."""
    return PartitionSpec(*(ACTIVATION_AXES[letter] for letter in "ABT"))


def place_batch(
    mesh: Mesh,
    shape: tuple[int, int, int],
    build: Callable[[np.ndarray, slice | np.ndarray], Mapping[str, np.ndarray]],
) -> dict[str, jax.Array]:
    """Place one global batch on the devices, each host building only what its devices hold.

    Args:
      mesh: the device mesh.
      shape: `(A, B / A, T)`: micro-batches, rows in each, tokens.
      build: `build(rows, columns)` returns arrays of those rows of the global batch and those of its T columns;
        rows are indices, columns a slice or, where T is divided, indices.

    Returns:
      The arrays as `[A, B / A, T]`, keyed as `build` keys them. Micro-batch `a` holds rows
      `a * B / A` onwards: the loader feeds them in place, because reshaping a sharded batch
      into micro-batches would move rows between devices. Divided over the `context` axis, T is in the order of
      `lm.parallel.columns`.
    """
    context = mesh.shape.get("context", 1)
    order = zigzag(shape[2], context) if is_split(shape[2], context) else None
    sharding = named_sharding(mesh, "ABT", shape, ACTIVATION_AXES)
    built: dict[tuple, Mapping[str, np.ndarray]] = {}

    def local(index: tuple[slice, slice, slice]) -> Mapping[str, np.ndarray]:
        micro, rows, columns = (range(*part.indices(size)) for part, size in zip(index, shape, strict=True))
        key = (micro, rows, columns)
        if key not in built:
            wanted = np.add.outer(np.asarray(micro) * shape[1], np.asarray(rows)).reshape(-1)
            held = slice(columns.start, columns.stop)
            part = build(wanted, held if order is None else order[held])
            built[key] = {name: a.reshape(len(micro), len(rows), len(columns)) for name, a in part.items()}
        return built[key]

    indices = sharding.addressable_devices_indices_map(shape)
    names = list(local(next(iter(indices.values()))))
    return {
        name: jax.make_array_from_callback(shape, sharding, lambda index, name=name: local(index)[name])
        for name in names
    }
