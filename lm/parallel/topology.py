"""Hardware that is not here: abstract devices of a TPU slice or a GPU host, to compile for.

A topology is written `v5p:4x4x4` everywhere, and `2*v5e:2x4` where several slices are joined by the data centre's
network (`config.parallel.slices`). TPUs need the extra `tpu` (libtpu is the compiler), GPUs
`gpu`; neither needs a device or a driver. The default backend may stay the CPU.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from lm.capabilities import ATTENTION, Capabilities
from lm.config import ParallelConfig
from lm.errors import LmError, UsageError, did_you_mean
from lm.parallel.devices import detect
from lm.parallel.mesh import make_mesh

# Family -> (device kind as JAX names it, dimensions of its topologies, an example).
_TPUS: Mapping[str, tuple[str, int, str]] = {
    "v4": ("TPU v4", 3, "v4:2x2x2"),
    "v5e": ("TPU v5 lite", 2, "v5e:4x4"),
    "v5p": ("TPU v5", 3, "v5p:4x4x4"),
    "v6e": ("TPU v6 lite", 2, "v6e:4x4"),
    "tpu7x": ("TPU7x", 3, "tpu7x:2x2x1"),
}
# Family -> (device kind, memory bandwidth in bytes/s, memory in bytes); one host has at most eight.
_GPUS: Mapping[str, tuple[str, int, int]] = {
    "h100": ("NVIDIA H100 80GB HBM3", 3_352_000_000_000, 85_520_809_984),
    "h200": ("NVIDIA H200", 4_800_000_000_000, 151_397_597_184),
}
_PER_HOST = 8

# libtpu asks a metadata server that is not there, and refuses a second process, unless told.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}

# stream_executor.GpuTargetConfigProto of a Hopper SXM board: what the compiler asks of a device.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.12.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Devices to compile for; nothing can run on them."""

    name: str  # v5p:4x4x4, 2*v5p:4x4x4
    devices: tuple  # of jax.Device, abstract
    capabilities: Capabilities

    @property
    def num_devices(self) -> int:
        return len(self.devices)


def describe(name: str) -> Topology:
    """Return the devices and capabilities of a topology such as `v5e:4x4`, `v5p:4x4x4`, `2*v5e:4x4` or `h200:8`.

    Raises:
      UsageError: no such family, or not a shape of it.
      LmError: the compiler for it is not installed.
    """
    slices, _, whole = name.rpartition("*")
    family, _, shape = whole.partition(":")
    families = (*_TPUS, *_GPUS)
    is_written_well = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) and re.fullmatch(r"([1-9]\d*)?", slices)
    if family not in families or not is_written_well:
        examples = ", ".join([*(example for *_, example in _TPUS.values()), *(f"{gpu}:8" for gpu in _GPUS)])
        near = did_you_mean(family, families) if family not in families else ""
        raise UsageError(f'topology "{name}": expected a family and its shape, like {examples}.{near}')
    sizes, num_slices = tuple(map(int, shape.split("x"))), int(slices or 1)
    if family in _GPUS and num_slices > 1:
        raise UsageError(f'topology "{name}": GPUs have no slices; give their number, like {family}:16.')
    if family in _GPUS:
        devices = _gpu_devices(name, family, sizes)
    else:
        devices = _tpu_devices(name, whole, family, sizes, num_slices)
    kind, platform = (_GPUS[family][0], "gpu") if family in _GPUS else (_TPUS[family][0], "tpu")
    # JAX asks the cuDNN of the machine that compiles; without a GPU there is none.
    attention = {name: support for name, support in ATTENTION.items() if name != "cudnn"}
    return Topology(name, tuple(devices), Capabilities(platform=platform, device_kind=kind, attention=attention))


def here() -> Topology:
    """Return this machine's own devices."""
    return Topology("here", tuple(jax.devices()), detect())


def topology_mesh(topology: Topology, parallel: ParallelConfig) -> Mesh:
    """Return the mesh of a resolved `config.parallel` over a topology's devices."""
    return make_mesh(parallel, topology.devices)


def _tpu_devices(name: str, slice_name: str, family: str, sizes: tuple[int, ...], num_slices: int):
    _, rank, example = _TPUS[family]
    if len(sizes) != rank:
        raise UsageError(f'topology "{name}": {family} has {rank} dimensions, like {example}.')
    for variable, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = {"num_slices": num_slices} if num_slices > 1 else {}
    if math.prod(sizes) < 4:  # part of a host
        options["chips_per_host_bounds"] = (*sizes, 1)[:3]
    if family == "v4":
        options["chip_config_name"] = "megacore"  # as on a TPU VM: both cores of a chip are one device
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=slice_name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(f'topology "{name}": libtpu says {str(error).splitlines()[0]}') from error
    except RuntimeError as error:
        raise LmError(
            f"compiling for {name} needs libtpu: install the extra `tpu` (pip install -e '.[tpu]')."
        ) from error


def _gpu_devices(name: str, family: str, sizes: tuple[int, ...]):
    kind, bandwidth, memory = _GPUS[family]
    (count,) = sizes if len(sizes) == 1 else (0,)
    if count < 1 or (count > _PER_HOST and count % _PER_HOST):
        raise UsageError(f'topology "{name}": expected a number of GPUs up to {_PER_HOST}, or a multiple of it.')
    hosts = max(1, count // _PER_HOST)
    try:
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=_HOPPER.format(kind=kind, bandwidth=bandwidth, memory=memory),
            topology=f"1x{hosts}x{count // hosts}",  # partitions, hosts, GPUs of a host
        ).devices
    except (NotImplementedError, RuntimeError) as error:
        raise LmError(
            f"compiling for {name} needs JAX's CUDA plugin: install the extra `gpu` (pip install -e '.[gpu]')."
        ) from error


@dataclasses.dataclass(frozen=True)
class CompiledStats:
    """What a compiler says about a program, per device."""

    topology: str
    num_devices: int
    argument_bytes: int  # state and batch; donated, they are the outputs' place too
    temporary_bytes: int  # the most that is alive at one time beside the arguments, gradients among it
    host_bytes: int  # state and temporaries in the host's memory
    limit_bytes: int | None  # what a program may use of the device's memory; None: not known
    collectives: Mapping[str, int]  # instructions in the program, not how often they run
    seconds: float  # of compilation
    text: str = dataclasses.field(default="", repr=False)  # the compiled program (HLO); empty where it does not fit

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes

    @property
    def fits(self) -> bool:
        """Whether the device can hold it."""
        return self.limit_bytes is None or self.peak_bytes <= self.limit_bytes


_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_NEEDED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of")


def compile_for(topology: Topology, function: Callable, *arguments: Any, optimize: bool = True) -> CompiledStats:
    """Compile a jitted function for a topology and say what it takes; nothing is allocated.

    Args:
      topology: its hardware.
      function: from `jax.jit`.
      arguments: trees of `jax.ShapeDtypeStruct` sharded over `topology_mesh`.
      optimize: False compiles a TPU program at XLA's O0, about six times faster. Its temporaries were 0.92 to
        1.5 times the real program's: less is fused, but the stacked parameters are not cast once before the loop.

    A program that does not fit has the compiler's word for its temporaries, and no collectives.
    """
    lowered = function.lower(*arguments)
    fast = {} if optimize or topology.capabilities.platform != "tpu" else {"optimization_level": 9}  # XLA's O0
    start = time.monotonic()
    text, memory = "", None
    try:
        compiled = lowered.compile(compiler_options=fast)
        text, memory = compiled.as_text(), compiled.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needed = _NEEDED.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or needed is None:
            raise
    seconds = time.monotonic() - start
    if memory is None:
        number, unit = (part for part in needed.groups() if part)
        argument = sum(_bytes_per_device(leaf) for leaf in jax.tree.leaves(arguments))
        temporary, host = int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit)))), 0
    else:
        # Not `temp_size_in_bytes`: for a TPU that is neither the heap's size nor what is alive at one time.
        argument = memory.argument_size_in_bytes
        host = memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes
        temporary = memory.peak_memory_in_bytes - argument
        if topology.capabilities.platform == "cpu":  # whose peak is that of the arguments
            temporary = memory.temp_size_in_bytes
    return CompiledStats(
        topology=topology.name,
        num_devices=topology.num_devices,
        argument_bytes=argument,
        temporary_bytes=temporary,
        host_bytes=host,
        limit_bytes=topology.capabilities.memory_bytes,
        collectives={kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in _COLLECTIVES},
        seconds=seconds,
        text=text,
    )


def _bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
