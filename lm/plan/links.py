"""How fast the devices along mesh axes can talk to each other, from where they stand in the hardware."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from lm.plan.chips import HOP_SECONDS, Chip, chip


def bandwidth(mesh: Mesh, axes: Sequence[str]) -> float | None:
    """Return the bytes/s at which each device can send in a ring collective along `axes`; None for unknown hardware.

    On a torus every dimension that the group fills adds its links: two where the dimension is a ring, one where it is
    a line, whose ends have one neighbour ("How to Scale Your Model", Austin et al. 2025, part 3). A group that takes
    every s-th device of a dimension shares each link with s - 1 others. Beyond a slice or a host its network is the
    narrowest place.
    """
    return _bandwidth(mesh, tuple(axes))


@functools.lru_cache(maxsize=4096)
def _bandwidth(mesh: Mesh, axes: tuple[str, ...]) -> float | None:
    figures = chip(mesh.devices.flat[0].device_kind)
    if figures is None:
        return None
    group = mesh.devices[tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)].reshape(-1)
    if len(group) == 1:
        return math.inf
    if not figures.torus:
        return _switched(group, figures)
    own = np.array([device for device in group if _slice(device) == _slice(group[0])])
    inside = _torus(own, mesh, figures) if len(own) > 1 else math.inf
    if len(own) == len(group):
        return inside
    # A slice reduces first, then each of its devices sends its share of the result over the network.
    return min(inside, len(own) * figures.network_bandwidth)


def latency(mesh: Mesh, axes: Sequence[str]) -> float:
    """Return the seconds that a collective's first byte takes to the farthest device of its group, on a torus."""
    return _latency(mesh, tuple(axes))


@functools.lru_cache(maxsize=4096)
def _latency(mesh: Mesh, axes: tuple[str, ...]) -> float:
    figures = chip(mesh.devices.flat[0].device_kind)
    group = mesh.devices[tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)].reshape(-1)
    if figures is None or not figures.torus or len({_slice(device) for device in group}) > 1:
        return 0.0
    coords = np.array([device.coords for device in group])
    extents = coords.max(0) - coords.min(0) + 1
    return HOP_SECONDS * sum(int(e) // 2 if figures.wraps(int(e)) else int(e) - 1 for e in extents)


def _switched(group: np.ndarray, figures: Chip) -> float:
    in_host = len(group) / len({device.process_index for device in group})
    if in_host == len(group):
        return figures.link_bandwidth
    # The devices of a host take turns on its network cards [ring through all of them].
    return min(figures.link_bandwidth, in_host * figures.network_bandwidth)


def _torus(group: np.ndarray, mesh: Mesh, figures: Chip) -> float:
    here = _slice(group[0])
    whole = np.array([device.coords for device in mesh.devices.flat if _slice(device) == here])
    sizes = whole.max(0) - whole.min(0) + 1
    coords = np.array([device.coords for device in group])
    extents = [len(set(column)) for column in coords.T]
    if math.prod(extents) > len({tuple(c) for c in coords.tolist()}):
        return figures.link_bandwidth / figures.devices_per_chip  # not a box: a path through the torus
    total = 0.0
    for column, extent, size in zip(coords.T, extents, sizes, strict=True):
        if extent == 1:
            continue
        stride = (column.max() - column.min()) // (extent - 1)
        closed = extent * stride == size and extent > 2 and figures.wraps(int(size))
        total += figures.link_bandwidth * (2 if closed else 1) / stride
    # Two devices of one chip share its links; between themselves they need none.
    return (total or 2 * figures.link_bandwidth) / figures.devices_per_chip


def _slice(device) -> int:
    return getattr(device, "slice_index", 0) or 0
