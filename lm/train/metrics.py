"""Where a run's metrics go: records into sinks.

A record is a flat dict with at least `step`. Its `kind` is `train` (the default when absent) or
`eval`; an eval record names its `split`. Fields and units:

  train: step, loss (nats per token), bits_per_byte, learning_rate, grad_norm, tokens (since the
         run began, padding counted), epoch, tokens_per_second, mfu (a fraction; None when the chip's peak is
         unknown, never 0), seconds (wall time); where they are in use: z_loss (nats per token, not in
         loss), loss_scale (of this step), skipped_steps (so far), and what the objective adds
  eval:  step, split, loss, perplexity, bits_per_byte, tokens, bytes, stride
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lm.errors import DamagedFileError
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
        group = record.get("split", record.get("kind", "train"))
        numbers = {name: _plain(value) for name, value in record.items() if name != "step"}
        self._writer.scalars(
            int(record["step"]), {f"{group}/{name}": value for name, value in numbers.items() if _is_number(value)}
        )
        if self._cadence.due():
            self.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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
    plain = {name: _plain(value) for name, value in record.items()}
    nonfinite = [name for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]
    if nonfinite:
        plain |= dict.fromkeys(nonfinite) | {"nonfinite": nonfinite}
    return json.dumps(plain, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return a zero-dimensional array or numpy scalar as the Python number it holds."""
    return value.item() if hasattr(value, "item") else value


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
