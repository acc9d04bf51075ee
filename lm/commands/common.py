"""What the verbs share: reading config files, opening runs, and the parts handed to the loop."""

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from lm.capabilities import Capabilities
from lm.commands.startup import cpu_devices_for, setup_jax
from lm.config import Config, ParallelConfig, apply_overrides, to_dict
from lm.data.document import Progress
from lm.errors import ConfigError, LmError, UsageError, did_you_mean
from lm.extensions import load_extension
from lm.fields import build
from lm.resolve import resolve, with_vocabulary

_LINE_SECONDS = 10.0  # between two lines of progress where stderr is no terminal


def load_config(path: str, overrides: Sequence[tuple[str, str]] = ()):
    """Run a config file's `get_config()` and apply overrides; returns a ConfigDict that is not resolved yet.

    Raises:
      UsageError: there is no such file.
      ConfigError: it has no `get_config`, raises, or an override is wrong.
    """
    from ml_collections import ConfigDict

    config = call_in_file(path, "get_config", like="experiments/tiny.py")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f'"{path}": get_config() returned {config!r:.60}; expected lm.config.default(), changed.')
    apply_overrides(config, overrides)
    return config


def call_in_file(path: str, function: str, *, like: str) -> Any:
    """Run a Python file and return what its `function()` returns.

    Args:
      path: the file; what it names as "package.module:Name" is found beside it too.
      function: without arguments.
      like: a file to start from, for the errors.

    Raises:
      UsageError: there is no such file.
      ConfigError: it has no such function, or raises.
    """
    if not os.path.isfile(path):
        raise UsageError(f'no file "{path}". Try {like}.')
    spec = importlib.util.spec_from_file_location("lm_experiment", path)
    if spec is None:
        raise ConfigError(f'"{path}" is not a Python file with a {function}().')
    module = importlib.util.module_from_spec(spec)
    find_extensions_in(os.path.dirname(os.path.abspath(path)))
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ConfigError(f'"{path}" has no {function}(). Start from {like}.')
        return getattr(module, function)()
    except LmError:
        raise
    except AttributeError as error:
        typo = re.search(r'Key "(\w+)" does not exist', str(error))  # ConfigDict's, followed by the whole config
        if typo is None:
            raise ConfigError(f'"{path}": AttributeError: {error}') from error
        sections = to_dict(Config())
        names = [*sections, *(name for part in sections.values() if isinstance(part, dict) for name in part)]
        hint = did_you_mean(typo[1], names)
        raise ConfigError(f'"{path}" sets "{typo[1]}", which is not a field there.{hint}') from error
    except Exception as error:  # the user's own file: whatever is wrong in it is a config error
        raise ConfigError(f'"{path}": {type(error).__name__}: {" ".join(str(error).split())}') from error


def find_extensions_in(folder: str) -> None:
    """Let "package.module:Name" be found in this folder and in `folder`, after everything installed."""
    sys.path += [path for path in (os.getcwd(), os.path.abspath(folder)) if path not in sys.path]


def resolve_here(config_dict, join: Callable[[ParallelConfig], None] | None = None) -> Config:
    """Resolve a config against the devices of this machine, or of all hosts of the run.

    Args:
      config_dict: not resolved yet.
      join: joins the other hosts before JAX looks for devices; None: there are none.
    """
    from lm.parallel.devices import detect
    from lm.train.metrics import check_sinks

    parallel = build(Config, config_dict.to_dict(), "").parallel
    cpu_devices = 1 if join else cpu_devices_for(config_dict)
    jax = setup_jax((config_dict.get("data") or {}).get("cache"), cpu_devices, xla_flags=parallel.xla_flags)
    if join:
        join(parallel)
    config = resolve(config_dict, devices=jax.device_count(), capabilities=detect())
    extensible = {
        "objective": config.objective,
        "model.block": config.model.block,
        "optimizer.name": config.optimizer.name,
    }
    for field, name in extensible.items():
        if ":" in name:
            load_extension(field, name)  # refused now, not after the data is prepared
    check_sinks(config.log)
    return config


def resolve_anywhere(config_dict) -> Config:
    """Resolve what does not depend on the machine: a config for a pod is looked at on a laptop."""
    config_dict.parallel = to_dict(ParallelConfig(data=1))
    return resolve(config_dict, capabilities=Capabilities(platform="tpu", device_kind="TPU7x"))  # it can do everything


def resolve_for(config_dict, topology) -> Config:
    """Resolve a config for a `Topology` that is not here, its vocabulary filled in without preparing data."""
    config = resolve(config_dict, devices=topology.num_devices, capabilities=topology.capabilities)
    if config.model.vocab_size is None:
        config = with_vocabulary(config, tokenizer_vocabulary(config))
    return config


def tokenizer_vocabulary(config: Config) -> int:
    """Return the vocabulary that a config's tokenizer has, or will have when it is trained."""
    from lm.tokenizer import OFFICIAL, load_tokenizer

    if config.data.tokenizer == "train":
        return config.data.tokenizer_vocab_size
    if config.data.tokenizer in OFFICIAL:  # known without the file: the last id is a special token's
        return 1 + max(OFFICIAL[config.data.tokenizer].specials.values())
    return load_tokenizer(config.data.tokenizer).vocab_size


def step(text: str) -> int | str:
    """Return what `--step` says: a number, or `best`."""
    return text if text == "best" else int(text)


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """Refuse zero and negative counts among a verb's options (None: not given)."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected 1 or more.")


def note(line: str) -> None:
    """Print one line to stderr."""
    print(f"lm: {line}", file=sys.stderr)


def result_json(result: Any, **options: Any) -> str:
    """Return a result as valid JSON: NaN and infinities become null at any depth, as in `lm.train.metrics.to_json`.

    Args:
      result: dicts, lists, numbers and text.
      options: of `json.dumps`.
    """
    from lm.train.metrics import nulled

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return nulled({name: part if isinstance(part, float) else plain(part) for name, part in value.items()})
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(result), allow_nan=False, **options)


def progress_line(what: str, unit: str = "", *, tells_end: bool = False) -> Callable[[int, int], None]:
    """Return `show(done, total)`: rate and time left on stderr, on a terminal one line that changes, else one now and then.

    Args:
      what, unit: `piqa` and `items` for "piqa: 40 of 100 items".
      tells_end: where stderr is no terminal the end has a line too, however soon it comes.
    """
    first: tuple[float, int] | None = None  # after the first part, whose time is compilation
    last, is_terminal = time.monotonic(), sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        nonlocal first, last
        now, is_end = time.monotonic(), done >= total
        first = first or (now, done)
        if now - last < (0.2 if is_terminal else _LINE_SECONDS) and not (is_end and (is_terminal or tells_end)):
            return
        last = now
        text = f"{what}: {done:,} of {total:,} {unit}".rstrip()
        if rate := (done - first[1]) / max(now - first[0], 1e-9):
            text += f", {rate:.1f} a second, {(total - done) / rate:.0f} s left"
        if is_terminal:
            print(f"\r{text}\x1b[K", end="\n" if is_end else "", file=sys.stderr, flush=True)
        else:
            note(text)

    return show


def data_progress(show: Callable[[str], None], doing: str = "preparing data: ") -> Progress:
    """Return a `lm.data.document.Progress` that shows a line per stage and every five seconds."""
    stage_start = last = 0.0
    current, at_start = "", 0

    def progress(stage: str, done: int, total: int | None = None, unit: str = "characters") -> None:
        nonlocal stage_start, last, current, at_start
        now = time.monotonic()
        if stage != current:
            current, at_start, stage_start, last = stage, done, now, now
            show(f"{doing}{stage}")
        elif now - last >= 5:
            last = now
            rate = (done - at_start) / (now - stage_start)
            of = f" of {total:,}" if total else ""
            left = f", {(total - done) / max(rate, 1):.0f} s left" if total else ""
            show(f"{doing}{stage}, {done:,}{of} {unit}, {rate / 1e6:.1f} M a second{left}")

    return progress
