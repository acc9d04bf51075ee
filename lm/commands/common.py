"""What the verbs share: reading config files, opening runs, and the parts handed to the loop."""

import argparse
import dataclasses
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from lm.config import Config, ParallelConfig, apply_overrides, resolve, to_dict
from lm.errors import ConfigError, LmError, UsageError
from lm.extensions import load_extension
from lm.storage import cache_root, join
from lm.train.run_folder import read_run_info


def load_config(path: str, overrides: Sequence[tuple[str, str]] = ()):
    """Run a config file's `get_config()` and apply overrides; returns a ConfigDict that is not resolved yet.

    Raises:
      UsageError: there is no such file.
      ConfigError: it has no `get_config`, raises, or an override is wrong.
    """
    if not os.path.isfile(path):
        raise UsageError(f'no config file "{path}". Try experiments/tiny.py.')
    spec = importlib.util.spec_from_file_location("lm_experiment", path)
    if spec is None:
        raise ConfigError(f'"{path}" is not a Python file with a get_config().')
    from ml_collections import ConfigDict

    module = importlib.util.module_from_spec(spec)
    folder = os.path.dirname(os.path.abspath(path))
    find_extensions_in(folder)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f'"{path}" has no get_config(). Start from experiments/tiny.py.')
        config = module.get_config()
    except LmError:
        raise
    except Exception as error:  # the user's own file: whatever is wrong in it is a config error
        raise ConfigError(f'"{path}": {type(error).__name__}: {" ".join(str(error).split())}') from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f'"{path}": get_config() returned {config!r:.60}; expected lm.config.default(), changed.')
    apply_overrides(config, overrides)
    return config


def find_extensions_in(folder: str) -> None:
    """Let "package.module:Name" be found in this folder and in `folder`, after everything installed."""
    sys.path += [path for path in (os.getcwd(), os.path.abspath(folder)) if path not in sys.path]


def setup_jax(config_cache: str | None = None):
    """Import JAX and keep compiled programs beside the data cache, so that a second run starts fast."""
    accelerators = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, accelerators)):
        _keep_freed_memory()
    # LAPACK (SOAP's QR, on CPU) on one thread a call: XLA's pool runs calls side by side, and OpenBLAS's own threads,
    # which spin while they wait, took 20 s for four 512 x 512 QRs on a busy machine where one thread took 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    folder = join(cache_root(config_cache), "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return jax


def _keep_freed_memory() -> None:
    """Stop glibc from giving every freed buffer back to the kernel.

    XLA's CPU backend allocates its temporary buffers anew in each step: at 1,024 tokens a step the
    page faults of fresh memory took a fifth to a third of the step (experiments/LOG.md). For
    machines without an accelerator; has no effect on other C libraries.
    """
    import ctypes

    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    arena_max, mmap_max, top_pad, trim_threshold = -8, -4, -2, -1  # malloc.h
    for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20)):
        mallopt(option, value)


def resolve_here(config_dict) -> Config:
    """Resolve a config against the devices of this machine."""
    from lm.parallel.devices import detect

    jax = setup_jax((config_dict.get("data") or {}).get("cache"))
    config = resolve(config_dict, devices=jax.device_count(), capabilities=detect())
    extensible = {
        "objective": config.objective,
        "model.block": config.model.block,
        "optimizer.name": config.optimizer.name,
    }
    for field, name in extensible.items():
        if ":" in name:
            load_extension(field, name)  # refused now, not after the data is prepared
    return config


def resolve_anywhere(config_dict) -> Config:
    """Resolve what does not depend on the machine: a config for a pod is looked at on a laptop."""
    config_dict.parallel = to_dict(ParallelConfig(data=1))
    return resolve(config_dict)


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A trained model, ready to use on the devices of this machine."""

    config: Config
    info: dict[str, Any]  # config.json
    model: Any
    mesh: Any
    params: Any
    tokenizer: Any
    step: int


def open_run(workdir: str, step: int | None = None) -> OpenedRun:
    """Open a run's checkpoint on whatever devices there are, whatever mesh wrote it.

    Args:
      workdir: the run's folder.
      step: None: the newest checkpoint that can be read.

    Raises:
      UsageError: no run, no checkpoint, or not that step.
      DamagedFileError: the checkpoint cannot be read.
    """
    info = read_run_info(workdir)
    find_extensions_in(info.get("config_folder", "."))
    jax = setup_jax(info["config"]["data"].get("cache"))
    from lm.checkpoint.store import Checkpoints
    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh, parameter_shardings
    from lm.tokenizer import load_tokenizer
    from lm.train.step import build_model

    plain = info["config"]
    plain["parallel"] = {"data": -1}
    plain["model"]["attention"] = "auto"
    rows, devices = plain["data"]["batch_size"] // plain["optimizer"]["accumulation_steps"], jax.device_count()
    plain["data"]["batch_size"] = max(rows - rows % devices, devices)  # a micro-batch that these devices can share
    plain["optimizer"]["accumulation_steps"] = 1
    plain["eval"]["batch_size"] = None
    config = resolve(plain, devices=jax.device_count(), capabilities=detect())
    mesh = make_mesh(config.parallel)
    model = build_model(config, mesh)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    targets = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, parameter_shardings(mesh, shapes)
    )
    checkpoints = Checkpoints(join(workdir, "checkpoints"), warn=note)
    restored = checkpoints.restore({"params": targets}, step=step)
    tokenizer = load_tokenizer(join(workdir, "tokenizer.tiktoken"))
    return OpenedRun(config, info, model, mesh, restored.items["params"], tokenizer, restored.step)


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """Refuse zero and negative counts among a verb's options (None: not given)."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected 1 or more.")


def note(line: str) -> None:
    """Print one line to stderr."""
    print(f"lm: {line}", file=sys.stderr)


def progress_line(what: str) -> Callable[[int, int], None]:
    """Return `show(done, total)`, which keeps one line of rate and time left on stderr (a terminal's only)."""
    start = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - last < 0.2 and done < total):
            return
        last = now
        left = (now - start) / max(done, 1) * (total - done)
        end = "\n" if done >= total else ""
        print(f"\r{what}: {done}/{total}, {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    return show


def data_progress(show: Callable[[str], None]) -> Callable[[str, int], None]:
    """Return `progress(stage, done)` for `lm.data.prepare`, which shows a line per stage and every five seconds."""
    stage_start = last = 0.0
    current = ""

    def progress(stage: str, done: int) -> None:
        nonlocal stage_start, last, current
        now = time.monotonic()
        if stage != current:
            current, stage_start, last = stage, now, now
            show(f"preparing data: {stage}")
        elif now - last >= 5:
            last = now
            show(f"preparing data: {stage}, {done:,} characters, {done / (now - stage_start) / 1e6:.1f} M a second")

    return progress
