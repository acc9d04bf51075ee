"""The region of a program in which each device works on its own part of every array (`shard_map` over the whole mesh)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh


def region(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Return `function` over local arrays, as a function of whole ones.

    Args:
      mesh: the device mesh; `function` may use collectives over all of its axes.
      function: its arrays are this device's parts.
      in_specs, out_specs: trees of `PartitionSpec`. Arrays without an axis are the same on its devices; so must the
        results be.

    A gradient taken inside is that of the sum of what all devices return, with respect to this device's own arrays
    (`lm.parallel.zero` adds the devices' up). JAX's `check_vma`, which would add them up by itself wherever an array
    is used, is off. A gradient taken from outside, with respect to an argument that is not split over an axis, is
    summed over that axis.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
