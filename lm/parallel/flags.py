"""Recommended XLA flags, by platform, set before JAX starts. No JAX here.

A flag that a compiler does not know aborts the process. So they are set only for the versions that
tests/aot/test_flags.py has compiled with, and one that the user has set stays.
"""

import glob
import importlib.metadata
import importlib.util
from collections.abc import Mapping, MutableMapping

# What each compiler was when the flags were tried: package and version prefix.
TESTED: Mapping[str, tuple[str, str]] = {"tpu": ("libtpu", "0.0.42"), "gpu": ("jaxlib", "0.10.")}

# The variable that each compiler reads.
VARIABLES: Mapping[str, str] = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}

# Flag -> value and why. libtpu 0.0.42 has all of its own on by default (with them the program is the same, without
# any one of them it is another); they are written down because overlap is what the predicted step times count on.
FLAGS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "tpu": {
        "xla_tpu_enable_latency_hiding_scheduler": ("true", "orders computation so that it covers communication"),
        "xla_enable_async_all_gather": ("true", "a layer's parameters are gathered while another computes"),
        "xla_tpu_enable_async_collective_fusion": ("true", "runs a collective's steps inside a computation's kernel"),
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": ("true", "the same for ZeRO 3's all-gathers"),
        "xla_tpu_enable_async_collective_fusion_multiple_steps": ("true", "spreads one collective over many kernels"),
        "xla_tpu_overlap_compute_collective_tc": ("true", "lets the tensor core compute in those kernels"),
    },
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": ("true", "orders computation so that it covers communication"),
        "xla_gpu_enable_while_loop_double_buffering": (
            "true",
            "gathers a layer while the loop computes the one before",
        ),
        "xla_gpu_enable_pipelined_all_gather": ("true", "moves all-gathers into the iteration before"),
        "xla_gpu_enable_pipelined_reduce_scatter": ("true", "moves reduce-scatters into the iteration after"),
        "xla_gpu_enable_pipelined_all_reduce": ("true", "the same for all-reduces"),
        "xla_gpu_all_gather_combine_threshold_bytes": ("134217728", "one collective for a layer's many small arrays"),
        "xla_gpu_reduce_scatter_combine_threshold_bytes": ("134217728", "the same for their gradients"),
        "xla_gpu_all_reduce_combine_threshold_bytes": ("134217728", "the same without ZeRO"),
    },
}


def set_recommended(environment: MutableMapping[str, str]) -> None:
    """Add the flags for the accelerators of this machine to `LIBTPU_INIT_ARGS` or `XLA_FLAGS`.

    One GPU gets none: they serve communication, and a loop unrolled for it takes longer to compile.
    """
    for platform, is_here in {"tpu": _has_tpu, "gpu": _has_several_gpus}.items():
        package, version = TESTED[platform]
        if is_here() and _version(package).startswith(version):
            environment[VARIABLES[platform]] = with_recommended(environment.get(VARIABLES[platform], ""), platform)


def with_recommended(given: str, platform: str) -> str:
    """Return flags with those of a platform added that they do not set."""
    names = {part.removeprefix("--").partition("=")[0] for part in given.split()}
    added = (f"--{name}={value}" for name, (value, _) in FLAGS[platform].items() if name not in names)
    return " ".join([*given.split(), *added])


def _has_tpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"))


def _has_several_gpus() -> bool:
    return len(glob.glob("/dev/nvidia[0-9]*")) > 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
