"""Regions of a program in which each device works on its own part (`shard_map`), one inside another.

The compiler lays out everything else over the mesh. Gradient accumulation is a region over the batch's axes; the
pipeline, attention, the experts and the loss are regions inside it, over the axes that are left. `check_vma` is off:
with it, JAX 0.10 gives the residuals of an inner region the axes of the outer one, which do not lower.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def manual_axes() -> frozenset[str]:
    """Return the mesh axes that are local in the region being traced; empty outside of one."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def region(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any, axes: Collection[str] | None = None):
    """Return `function` over local arrays, as a function of whole ones.

    Args:
      mesh: the device mesh.
      function: its arrays are this device's parts.
      in_specs, out_specs: trees of `PartitionSpec` over any axes; those that are local already are left out.
        Arrays without an axis are the same on its devices; so must be the results be.
      axes: become local; None: all. Collectives over these, and over those local already, may be used in `function`.

    A gradient with respect to an argument that is not split over an axis is summed over that axis.
    """
    outside = manual_axes()
    names = frozenset(mesh.axis_names if axes is None else axes) - outside
    if not names:
        return function

    def strip(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(_without(entry, names) for entry in spec))

    specs = jax.tree.map(strip, (in_specs, out_specs), is_leaf=lambda s: isinstance(s, PartitionSpec))
    # Inside another region the mesh is the one being traced.
    whole = {} if outside else {"mesh": mesh}
    return jax.shard_map(function, **whole, in_specs=specs[0], out_specs=specs[1], axis_names=names, check_vma=False)


def _without(entry: Any, names: frozenset[str]) -> Any:
    """Keep of one dimension's axes those in `names`."""
    axes = tuple(axis for axis in ((entry,) if isinstance(entry, str) else entry or ()) if axis in names)
    return axes or None
