"""Pods that are too large to compile for within minutes, from a smaller slice of them; and weak scaling on paper.

A slice with the same work per device (its share of the batch, the same tensor, context and expert parallelism) has
the same activations; what differs, the state's shards and the gathers, the formulas know. So the formulas are scaled by what the
compiler made of them on the slice.
"""

import dataclasses
import math
from collections.abc import Sequence

from lm.axes import MESH_AXES
from lm.config import Config
from lm.errors import ConfigError
from lm.parallel.topology import Topology, describe
from lm.plan.plan import Plan, make_plan
from lm.plan.search import change
from lm.plan.transfers import REPLICATED, SHARED

COMPILED_DEVICES = 512  # the largest pod that is compiled for directly: two minutes on two cores


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A pod's plan, and the compiled slice that it is checked against."""

    plan: Plan  # of the pod, from the formulas
    checked: Plan  # of the slice, compiled

    @property
    def ratio(self) -> float:
        """The compiler's temporaries over the formulas', on the slice."""
        return self.checked.compiled.temporary_bytes / self.checked.memory.temporaries

    @property
    def peak(self) -> int:
        """The pod's expected peak: the formulas' state and their temporaries times `ratio`."""
        return round(self.plan.memory.arguments + self.ratio * self.plan.memory.temporaries)


def scaled_plan(config: Config, topology: Topology) -> Scaled:
    """Return the plan of a pod beside a compiled slice of it.

    Raises:
      ConfigError: no slice has the same work per device.
    """
    part = slice_of(topology.name)
    smaller = describe(part)
    return Scaled(
        make_plan(config, topology),
        make_plan(shrunk(config, topology.num_devices // smaller.num_devices), smaller, compiled=True),
    )


def slice_of(name: str) -> str:
    """Return the largest part of a topology with at most `COMPILED_DEVICES`: its longest sides halved, one slice."""
    family, _, shape = name.rpartition("*")[2].partition(":")
    sizes = [int(size) for size in shape.split("x")]
    while math.prod(sizes) > COMPILED_DEVICES:
        longest = max(range(len(sizes)), key=lambda i: (sizes[i], i))
        if sizes[longest] % 2:
            raise ConfigError(f"topology {name}: no half of it is a slice; plan for one whose sides are even.")
        sizes[longest] //= 2
    return f"{family}:{'x'.join(map(str, sorted(sizes) if len(sizes) == 3 else sizes))}"


def shrunk(config: Config, factor: int) -> Config:
    """Return a config for 1 / factor of the devices with the same work on each: fewer replicas, then smaller shards.

    Raises:
      ConfigError: the axes of the batch do not divide.
    """
    sizes, left = {}, factor
    for axis in (*REPLICATED, SHARED):
        size = getattr(config.parallel, axis)
        taken = math.gcd(size, left)
        sizes[axis], left = size // taken, left // taken
    if left > 1 or config.data.batch_size % factor:
        raise ConfigError(
            f"no slice of 1/{factor} has the same work per device: data x fsdp and data.batch_size must divide by it."
        )
    smaller = change(config, **sizes)
    return dataclasses.replace(
        smaller, data=dataclasses.replace(config.data, batch_size=config.data.batch_size // factor)
    )


# Chips -> shape of the usual slices; two dimensions end at a pod of 16 x 16, from which on slices are joined.
_CUBES = {16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_CUBES |= {1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"}
_SQUARES = {16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}


def sized(family: str, chips: int) -> str:
    """Return the name of a family's usual topology of so many chips."""
    if family in ("v5e", "v6e"):
        slices, inside = max(1, chips // 256), min(chips, 256)
        return f"{slices}*{family}:{_SQUARES[inside]}" if slices > 1 else f"{family}:{_SQUARES[inside]}"
    return f"{family}:{_CUBES[chips]}"


@dataclasses.dataclass(frozen=True)
class ScalingPoint:
    """One pod of a weak scaling curve."""

    chips: int
    curve: str  # how the state is shared and how much work each device has
    plan: Plan


def weak_scaling(config: Config, family: str, chips: Sequence[int]) -> list[ScalingPoint]:
    """Return plans over pods of growing size with the same rows on each device, in one micro-batch.

    Two ways to share the state, ZeRO 3 over all chips of a slice and over 64 with replicas of that, with one row on
    each device and with four; slices are replicas.

    Args:
      config: resolved; its mesh and batch are replaced.
      family: of TPUs.
      chips: sizes of the pods.
    """
    points = []
    for count in chips:
        topology = describe(sized(family, count))
        slices = int(topology.name.partition("*")[0]) if "*" in topology.name else 1
        inside = topology.num_devices // slices
        for rows in (1, 4):
            for over, shared in (("all", inside), ("64", 64)):
                if shared > inside:
                    continue
                sizes = dict.fromkeys(MESH_AXES, 1) | {SHARED: shared}
                sizes |= {REPLICATED[0]: slices, REPLICATED[-1]: inside // shared}
                own = change(config, micro=1, zero=3, offload_optimizer=False, pipeline_repeats=1, **sizes)
                batch = rows * topology.num_devices
                own = dataclasses.replace(own, data=dataclasses.replace(config.data, batch_size=batch))
                curve = f"ZeRO 3 over {over}, {rows * config.data.sequence_length:,} tokens a device"
                points.append(ScalingPoint(count, curve, make_plan(own, topology)))
    return points
