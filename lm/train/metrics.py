"""Where a run's metrics go: records into sinks.

A record is a flat dict with at least `step`. Its `kind` is `train` (the default when absent) or
`eval` or `task`; these name their `split`, or their task there. Fields and units:

  train: step, loss (nats per token), bits_per_byte, learning_rate, grad_norm, tokens (since the
         run began, padding counted), epoch, tokens_per_second, mfu (a fraction; None when the chip's peak is
         unknown, never 0), seconds (wall time); where they are in use: z_loss (nats per token, not in
         loss), loss_scale (of this step), skipped_steps (so far), and what the objective adds
  eval:  step, split, loss, perplexity, bits_per_byte, tokens, bytes, stride
  task:  step, split, items, and the figures of `lm.evaluate.records.summarize_items`

The run's own files (`metrics.jsonl`, `events/`) must be written: if one cannot be, the run saves nothing more
and stops with the error. What reports elsewhere (Weights & Biases, `config.log.sinks`) may fail: one warning,
and the run goes on without it.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lm.config import Config, LogConfig, to_dict
from lm.errors import ConfigError, DamagedFileError, LmError, Preempted
from lm.extensions import load_extension
from lm.storage import LineLog, exists, is_remote, join
from lm.train.events import EventWriter

Record = Mapping[str, Any]

REMOTE_FLUSH_SECONDS = 60.0  # each flush to an object store makes one more file there


class Sink(Protocol):
    """Takes records. After `flush` returns, what was written survives a kill."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """`metrics.jsonl` in a run's folder: one JSON object a line, readable by any JSON parser.

    Locally every record is on disk when `write` returns. On an object store records travel once a
    minute, so flush before a checkpoint: its step's records must not be lost with the process.
    """

    def __init__(self, workdir: str):
        self._path = join(workdir, "metrics.jsonl")
        self._log = LineLog(self._path)
        self._cadence = _Cadence(REMOTE_FLUSH_SECONDS if is_remote(workdir) else 0.0)

    def truncate_after(self, step: int) -> None:
        """Drop the records of steps after `step`, and a torn last line; -1 drops everything.

        Called once before the first `write` of every start: a run that resumes from a checkpoint
        writes those steps again.

        Raises:
          DamagedFileError: a line before the last is not a record.
          LmError: the file cannot be read or written.
        """
        lines = self._log.read()
        if not lines and not exists(self._path):
            return
        # On an object store a kill in the middle of `replace` leaves the old parts beside the new
        # one: the same lines twice.
        lines = dict.fromkeys(lines)
        self._log.replace(
            line for number, line in enumerate(lines, 1) if _parse(self._path, number, line)["step"] <= step
        )

    def write(self, record: Record) -> None:
        """Append one record; NaN and infinities become null and are named in `nonfinite`."""
        self._log.append(to_json(record))
        if self._cadence.due():
            self.flush()

    def flush(self) -> None:
        """Put the records where a kill cannot take them; raises LmError if they cannot be written."""
        self._log.flush()

    def close(self) -> None:
        self.flush()


class EventSink:
    """TensorBoard events in the run's `events/`: `train/loss`, `validation/bits_per_byte`, …"""

    def __init__(self, workdir: str, first_step: int = 0):
        """`first_step`: the first step written, when a run resumes (see `EventWriter`)."""
        self._writer = EventWriter(join(workdir, "events"), first_step)
        self._cadence = _Cadence(REMOTE_FLUSH_SECONDS if is_remote(workdir) else 2.0)

    def write(self, record: Record) -> None:
        """Queue the record's numbers under its split's name (train records: `train`)."""
        self._writer.scalars(int(record["step"]), _named_numbers(record))
        if self._cadence.due():
            self.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases: the records' numbers under the names that TensorBoard shows, at our steps.

    Entity, mode, key and server are wandb's own environment variables (WANDB_ENTITY, WANDB_MODE=offline, …).
    The W&B run's id follows from fingerprint and folder, so that a resumed run goes on in the same W&B run,
    from the first step which that lacks; a run begun afresh in its folder takes its place. Offline, each start
    leaves a file of its own under `wandb/` with the steps from the resumed one on; after a hard kill, the
    steps since the checkpoint may be in two of them.
    """

    def __init__(
        self, project: str, config: Config, workdir: str, first_step: int, fingerprint: str, note: Callable[[str], None]
    ):
        """Open the W&B run; raises wandb's errors (no network) and LmError (no login: it would ask and wait)."""
        import wandb

        online = wandb.setup(wandb.Settings(silent=True)).settings.mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise LmError("no login; use `wandb login`, WANDB_API_KEY, or WANDB_MODE=offline.")
        place = workdir if is_remote(workdir) else os.path.abspath(workdir)
        own_folder = is_remote(workdir) or "WANDB_DIR" in os.environ
        self._run = wandb.init(
            project=project,
            id=hashlib.sha256(f"{fingerprint} {place}".encode()).hexdigest()[:16],
            name=place.rstrip("/").rsplit("/", 1)[-1],
            dir=None if own_folder else place,
            config={**to_dict(config), "fingerprint": fingerprint},
            allow_val_change=True,
            resume="allow" if first_step > 1 else None,
            reinit="create_new",
            # What it prints would break the live line. Without an end, a lost network would hold a finished run.
            settings=wandb.Settings(silent=True, console="off", init_timeout=60, finish_timeout=60),
        )
        self._next = self._run.step if self._run.resumed else 0
        where = f"offline, in {self._run.dir}" if self._run.offline else self._run.url or "disabled"
        note(f"Weights & Biases: {where}")

    def write(self, record: Record) -> None:
        """Send the record, unless the W&B run has had its step from the process before."""
        if record["step"] >= self._next:
            self._run.log(_named_numbers(record), step=int(record["step"]))

    def flush(self) -> None:
        """Do nothing: a process of wandb's own sends the records as they come."""

    def close(self) -> None:
        """Send what is left, for a minute at most; the rest stays on disk for `wandb sync`."""
        self._run.finish()


class _Expendable:
    """A sink that reports elsewhere: if it fails, it says so once, and the run goes on without it."""

    def __init__(self, name: str, open_sink: Callable[[], Sink], warn: Callable[[str], None]):
        self._name, self._warn = name, warn
        self._sink: Sink | None = None
        self._sink = self._attempt(open_sink)

    def write(self, record: Record) -> None:
        if self._sink:
            self._attempt(self._sink.write, record)

    def flush(self) -> None:
        if self._sink:
            self._attempt(self._sink.flush)

    def close(self) -> None:
        if self._sink:
            self._attempt(self._sink.close)

    def _attempt(self, action: Callable, *arguments) -> Any:
        try:
            return action(*arguments)
        except Preempted:
            raise
        except Exception as error:
            self._sink, reason = None, " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{self._name} gets no records from here on, the run goes on: {reason[:300]}")


class _Combined:
    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = tuple(sinks)

    def write(self, record: Record) -> None:
        for sink in self._sinks:
            sink.write(record)

    def flush(self) -> None:
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # a full disk under one sink must not lose another's records
            for sink in reversed(self._sinks):
                stack.callback(sink.close)


def combine(sinks: Sequence[Sink]) -> Sink:
    """Return one sink that hands every record to each; closing closes all, even if one fails, and then raises."""
    return _Combined(sinks)


def check_sinks(log: LogConfig) -> None:
    """Refuse sinks that this machine cannot have, before anything is done.

    Raises:
      ConfigError: a package or an extension is missing.
    """
    if log.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"config.log.wandb={log.wandb!r} needs the package wandb: pip install -e '.[log]'.")
    for name in log.sinks:
        load_extension("log.sinks", name)


def open_sinks(
    config: Config, workdir: str, first_step: int, fingerprint: str = "", note: Callable[[str], None] = print
) -> Sink:
    """Return every sink of a run as one.

    A sink of one's own, `config.log.sinks = ("package.module:Name",)`, is opened as
    `Name(config, workdir, first_step)` and is a `Sink`.

    Args:
      config: of the run; `config.log` says which sinks.
      workdir: the run's folder.
      first_step: the first step of which records will come; what `metrics.jsonl` has of it and of later
        ones is cut, for those steps run again. At 1 the run begins, and everything is cut.
      fingerprint: of the run.
      note: shows a line to the person.

    Raises:
      ConfigError: a package or an extension is missing.
      LmError: a file in the run's folder cannot be read or written.
    """
    check_sinks(config.log)
    jsonl = JsonlSink(workdir)
    jsonl.truncate_after(first_step - 1 if first_step > 1 else -1)
    sinks: list[Sink] = [jsonl]
    if config.log.tensorboard:
        sinks.append(EventSink(workdir, first_step))
    if config.log.wandb:
        opened = functools.partial(WandbSink, config.log.wandb, config, workdir, first_step, fingerprint, note)
        sinks.append(_Expendable("Weights & Biases", opened, note))
    for name in config.log.sinks:
        own = load_extension("log.sinks", name)
        sinks.append(_Expendable(name, functools.partial(own, config, workdir, first_step), note))
    return combine(sinks)


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """Return a run's records in the order they were written; a torn last line is left out.

    Raises:
      DamagedFileError: a line before the last is not a record.
      LmError: the file cannot be read.
    """
    path = join(workdir, "metrics.jsonl")
    return [_parse(path, number, line) for number, line in enumerate(LineLog(path).read(), 1)]


def to_json(record: Record) -> str:
    """Return a record as one line of valid JSON.

    JSON has no NaN or infinity: they become null, and `nonfinite` lists their names, so that null
    there reads as "diverged" and elsewhere as "not known". Records are flat: a nested NaN is a ValueError.
    """
    return json.dumps(nulled(record), allow_nan=False)


def nulled(record: Record) -> dict[str, Any]:
    """Return a record as `to_json` writes it, its values as Python's own."""
    plain = {name: _plain(value) for name, value in record.items()}
    nonfinite = [name for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]
    return plain | (dict.fromkeys(nonfinite) | {"nonfinite": nonfinite} if nonfinite else {})


def _plain(value: Any) -> Any:
    """Return a zero-dimensional array or numpy scalar as the Python number it holds."""
    return value.item() if hasattr(value, "item") else value


def _named_numbers(record: Record) -> dict[str, float]:
    """Return a record's numbers as `split/name`; a train record's split is `train`."""
    group = record.get("split", record.get("kind", "train"))
    plain = {f"{group}/{name}": _plain(value) for name, value in record.items() if name != "step"}
    return {name: value for name, value in plain.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record["step"], int):
            return record
    except (ValueError, KeyError):
        pass
    raise DamagedFileError(f'"{path}" line {number} is not a metrics record; remove that line to go on.')


class _Cadence:
    """`due()` is true at most once per period."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
