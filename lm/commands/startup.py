"""What is set before JAX starts: its caches, and what makes a CPU fast."""

import importlib.util
import os
import sys
from collections.abc import Mapping

from lm.errors import ConfigError
from lm.parallel.flags import set_recommended
from lm.resolve import resolve
from lm.storage import cache_root, join


def setup_jax(config_cache: str | None = None, cpu_devices: int = 1, xla_flags: bool = True):
    """Import JAX and keep compiled programs beside the data cache, so that a second run starts fast.

    Args:
      config_cache: `config.data.cache`.
      cpu_devices: into how many devices the CPU is divided, where it is the only one.
      xla_flags: set the recommended flags of the compilers (`lm.parallel.flags`).
    """
    if xla_flags:
        set_recommended(os.environ)
    if _has_cpu_only():
        _keep_freed_memory()
    # LAPACK (SOAP's QR, on CPU) on one thread a call: XLA's pool runs calls side by side, and OpenBLAS's own threads,
    # which spin while they wait, took 20 s for four 512 x 512 QRs on a busy machine where one thread took 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    if cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # which a job sets to a folder on its store
        jax.config.update("jax_compilation_cache_dir", join(cache_root(config_cache), "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return jax


def leave_devices_alone() -> None:
    """Keep this process on the CPU: it computes nothing, and what it starts needs the accelerators for itself."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _keep_freed_memory() -> None:
    """Stop glibc from giving every freed buffer back to the kernel.

    XLA's CPU backend allocates its temporary buffers anew in each step: at 1,024 tokens a step the
    page faults of fresh memory took a fifth to a third of the step (experiments/LOG.md). For
    machines without an accelerator; has no effect on other C libraries.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return
    arena_max, mmap_max, top_pad, trim_threshold = -8, -4, -2, -1  # malloc.h
    for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20)):
        mallopt(option, value)


def give_back_large_buffers() -> None:
    """Give every buffer from 32 MB on back to the kernel when it is freed: for large models, opened for inference.

    In glibc's heap one small allocation in the place of a freed buffer keeps the next one from fitting there: the
    temporaries of a 1B model lay in memory twice. Fresh pages take no time beside what such a model computes.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mmap_threshold, mmap_max = -3, -4  # malloc.h
        mallopt(mmap_threshold, 32 << 20)
        mallopt(mmap_max, 65_536)


def give_back_freed_memory() -> None:
    """Give what is free now back to the kernel: after a large checkpoint is read, whose chunks are not needed again."""
    malloc_trim = _of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_libc(name: str):
    """Return a function of the C library, or None if it has none of that name."""
    import ctypes

    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


# Optimizers whose step is cheap enough to be done twice.
_ELEMENTWISE = ("adamw", "lion", "schedule_free", "adafactor")
_TOKENS = 1024  # of a micro-batch, from which on dividing them pays


def cpu_devices_for(config_dict: Mapping) -> int:
    """Return into how many devices to divide a CPU on which this config trains: 1 or 2.

    XLA's CPU backend runs the small matmuls of attention on one thread each. Two devices, each with half the rows,
    keep two cores busy: steps of 2,048 tokens take 5 to 7 % less time (`experiments/benchmarks/cpu_training.py`).
    With fewer tokens nothing is gained, and with matrix optimizers, whose work both devices do, time is lost.
    """
    from lm.tokenizer.parallel import available_cores

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or not _has_cpu_only() or available_cores() < 2:
        return 1
    try:
        config = resolve(config_dict, devices=2)
    except ConfigError:  # said where the config is resolved for the devices that there are
        return 1
    rows = config.data.batch_size // config.optimizer.accumulation_steps
    is_large = rows * config.data.sequence_length >= 2 * _TOKENS
    return 2 if is_large and config.optimizer.name in _ELEMENTWISE else 1


def _has_cpu_only() -> bool:
    accelerators = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, accelerators))
