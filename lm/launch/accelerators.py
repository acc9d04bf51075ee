"""Topologies as every tool calls them: one table, plain data, no JAX and no cloud's library.

A topology is written `v5p:4x4x4`, `h100:64` or `cpu:8`, and `2*v6e:16x16` for two of them: TPU slices joined by the data
centre's network, machines that are asked for one by one, or processes of this machine. `here` is what this machine has.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from lm.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One generation of TPUs."""

    device_kind: str  # as JAX names it, see `lm.capabilities`
    shapes: tuple[str, ...]  # that can be asked for, smallest first
    type_stem: str  # of gcloud's accelerator types: v5litepod-16
    cores: int  # per chip, as gcloud's accelerator types count
    runtime: str  # the TPU VM's software
    gke: str  # the node label cloud.google.com/gke-tpu-accelerator
    machines: Mapping[int, str]  # chips of a host -> GKE's machine type
    cpus: int  # virtual CPUs per chip of a multi-host machine


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    device_kind: str
    gke: str  # the node label cloud.google.com/gke-accelerator
    machines: Mapping[int, str]  # GPUs of a host -> Google Cloud's machine type
    sky: str  # SkyPilot's name
    xpk: str | None  # xpk's device type for a host of eight


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


def _solids(longest: int) -> tuple[str, ...]:
    """Return the 3D shapes up to 16 x 16 x `longest` chips: part of a cube of 64, or whole cubes."""
    sides = range(4, 17, 4)
    whole = [(a, b, c) for a in sides for b in sides for c in range(4, longest + 1, 4) if a <= b <= c]
    return ("2x2x1", "2x2x2", "2x2x4", "2x4x4", *("x".join(map(str, s)) for s in sorted(whole, key=math.prod)))


TPUS: Mapping[str, Tpu] = {
    "v4": Tpu("TPU v4", _solids(16), "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", {4: "ct4p-hightpu-4t"}, 60),
    "v5e": Tpu(
        "TPU v5 lite",
        _FLAT,
        "v5litepod",
        1,
        "v2-alpha-tpuv5-lite",
        "tpu-v5-lite-podslice",
        {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        28,
    ),
    "v5p": Tpu("TPU v5", _solids(24), "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", {4: "ct5p-hightpu-4t"}, 52),
    "v6e": Tpu(
        "TPU v6 lite",
        _FLAT,
        "v6e",
        1,
        "v2-alpha-tpuv6e",
        "tpu-v6e-slice",
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        45,
    ),
}
GPUS: Mapping[str, Gpu] = {
    "l4": Gpu(
        "NVIDIA L4",
        "nvidia-l4",
        {1: "g2-standard-8", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
        "L4",
        None,
    ),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        "nvidia-a100-80gb",
        {1: "a2-ultragpu-1g", 2: "a2-ultragpu-2g", 4: "a2-ultragpu-4g", 8: "a2-ultragpu-8g"},
        "A100-80GB",
        None,
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        "nvidia-h100-80gb",
        {1: "a3-highgpu-1g", 2: "a3-highgpu-2g", 4: "a3-highgpu-4g", 8: "a3-highgpu-8g"},
        "H100",
        "h100-80gb-8",
    ),
    "h200": Gpu("NVIDIA H200", "nvidia-h200-141gb", {8: "a3-ultragpu-8g"}, "H200", "h200-141gb-8"),
}
CPU, HERE = "cpu", "here"  # simulated devices; whatever this machine has
_PER_HOST = 8  # GPUs, at most


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A topology: `copies` times so many hosts with so many devices each."""

    name: str  # 2*v6e:16x16
    family: str  # v6e
    shape: str  # 16x16
    copies: int  # TPU slices, GPU machines that are asked for one by one, processes of a CPU
    hosts: int  # of one copy
    devices_per_host: int

    @property
    def tpu(self) -> Tpu | None:
        return TPUS.get(self.family)

    @property
    def gpu(self) -> Gpu | None:
        return GPUS.get(self.family)

    @property
    def device_kind(self) -> str:
        return (self.tpu or self.gpu).device_kind if self.tpu or self.gpu else self.family

    @property
    def platform(self) -> str:
        return "tpu" if self.tpu else "gpu" if self.gpu else CPU  # of `here`: not known before JAX looks

    @property
    def devices(self) -> int:
        """All chips or GPUs together."""
        return self.copies * self.hosts * self.devices_per_host

    @property
    def gcloud_type(self) -> str:
        """Gcloud's accelerator type of one slice, which counts cores on some generations: v5p-128 has 64 chips."""
        return f"{self.tpu.type_stem}-{self.hosts * self.devices_per_host * self.tpu.cores}"

    @property
    def machine(self) -> str:
        """Google Cloud's machine type of a host."""
        return (self.tpu or self.gpu).machines[self.devices_per_host]


def parse(name: str) -> Accelerator:
    """Return what a topology consists of.

    Raises:
      UsageError: no such family, or not a shape of it.
    """
    if name == HERE:
        return Accelerator(name, HERE, "", 1, 1, 1)
    found = re.fullmatch(r"(?:([1-9]\d{0,3})\*)?([a-z0-9]+):(\d+(?:x\d+)*)", name)
    families = (*TPUS, *GPUS, CPU)
    family = found[2] if found else re.split(r"[:*]", name.rpartition("*")[2])[0]
    if not name:
        raise UsageError("--topology is needed: a family and its shape, like v5e:4x4, v5p:4x4x4 or h100:64.")
    if family not in families:
        raise UsageError(
            f'--topology "{name}": expected a family and its shape, like v5e:4x4, v5p:4x4x4, h100:64 or '
            f"2*v6e:16x16.{did_you_mean(family, families)} Families: {', '.join(families)}."
        )
    if not found:
        raise UsageError(f'--topology "{name}": expected {family}:SHAPE, like {_example(family)}.')
    copies, shape = int(found[1] or 1), found[3]
    if family in TPUS:
        tpu = TPUS[family]
        if shape not in tpu.shapes:
            near = did_you_mean(shape, tpu.shapes)
            raise UsageError(
                f'--topology "{name}": {family} has no slice of {shape}.{near} Slices: {", ".join(tpu.shapes[:9])}'
                + (", …" if len(tpu.shapes) > 9 else "")
                + "."
            )
        chips = math.prod(map(int, shape.split("x")))
        per_host = chips if chips in tpu.machines else 4
        return Accelerator(name, family, shape, copies, chips // per_host, per_host)
    if "x" in shape or int(shape) < 1:
        raise UsageError(f'--topology "{name}": expected a number of devices, like {_example(family)}.')
    count = int(shape)
    if family == CPU:
        return Accelerator(name, family, shape, copies, 1, count)
    per_host = min(count, _PER_HOST)
    if count % per_host or per_host not in GPUS[family].machines:
        sizes = ", ".join(map(str, GPUS[family].machines))
        raise UsageError(
            f'--topology "{name}": a machine has {sizes} GPUs of this kind; several machines have {_PER_HOST} each.'
        )
    return Accelerator(name, family, shape, copies, count // per_host, per_host)


def _example(family: str) -> str:
    if family in TPUS:
        return f"{family}:{next(s for s in TPUS[family].shapes if s in ('4x4', '4x4x4'))}"
    return f"{family}:{max(GPUS[family].machines) if family in GPUS else 2}"
