"""Where a run's wall time goes, in a record that outlives kills and restarts.

An attempt is one start of training in a run's folder. At every moment it is in one phase, so that its phases add up
to its wall time:

  init:       until the loop asks for its first batch: imports, devices, data, the state restored or initialized
  compile:    of the step's programs
  data_wait:  the loop waits for the next batch; the devices may still compute the step before
  step:       what is left of the loop's time
  evaluation: the loop's hooks: validation, tasks and samples, and what they compile
  save:       the loop is held up by a save; after the last step, by the files that end the attempt

Nothing here waits for a device. Steps are dispatched ahead of it, and the loop waits where it fetches the figures of
the step before: that wait is in `step`, and a phase is the loop's time, not the device's.

`timeline.jsonl` in the run's folder holds cumulative records of all attempts. Unlike `metrics.jsonl` it is never cut:
steps that are in it twice were lost once. `lm.report.goodput` reads it. A record has

  attempt: when the attempt began, in Unix time; it names the attempt
  time:    now, in Unix time
  step:    done, its figures fetched; null before the loop; in the loop's first record the step it begins at
  seconds: per phase, so far in this attempt
  run:     in an attempt's first record, the run's fingerprint
  end:     in its last one, `done`, `preempted` or `failed` (then with a `reason`); who is killed leaves none
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lm.errors import LmError, Preempted
from lm.storage import LineLog, exists, is_remote, join
from lm.train.metrics import REMOTE_FLUSH_SECONDS

FILE = "timeline.jsonl"
PHASES = ("init", "compile", "data_wait", "step", "evaluation", "save")
REASON_CHARACTERS = 200  # of why an attempt failed

# Between records: a tenth of a second, or a thousandth of the attempt, and a minute at most (on an object store,
# always). That is what a kill loses; one at every step would slow small models down and fill a long run's folder.
_SHORTEST, _SHARE, _LONGEST = 0.1, 1e-3, REMOTE_FLUSH_SECONDS

T = TypeVar("T")


class Timeline:
    """The phases of one attempt; until `recorded`, and on all hosts but the first, kept in memory only.

    Args:
      start: when the attempt began, on the monotonic clock; None: now.
      monotonic, wall: clocks, in seconds; `wall` gives Unix time.
    """

    def __init__(
        self,
        start: float | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        self.step: int | None = None  # done, its figures fetched
        self._monotonic, self._wall = monotonic, wall
        now = monotonic()
        self._start = self._since = now if start is None else start
        self._attempt = wall() - (now - self._start)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "init"
        self._log: LineLog | None = None
        self._warn: Callable[[str], None] | None = None
        self._shortest, self._due = _SHORTEST, 0.0

    def enter(self, phase: str) -> str:
        """Begin a phase; return the one that this ends."""
        now, before = self._monotonic(), self._phase
        self._seconds[before] += now - self._since
        self._since, self._phase = now, phase
        return before

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Be in a phase within the block, and then in the one before again."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches: until each comes is `data_wait`, until the next is asked for `step`, after the last `save`."""
        self.enter("data_wait")
        for batch in batches:
            self.enter("step")
            yield batch
            self.enter("data_wait")
        self.enter("save")

    def total(self, *phases: str) -> float:
        """Return the seconds so far in some phases; without a name, in all."""
        self.enter(self._phase)
        return sum(self._seconds[phase] for phase in phases or PHASES)

    @contextlib.contextmanager
    def recorded(self, workdir: str | None, run: str, warn: Callable[[str], None]) -> Iterator[None]:
        """Keep the record in a run's folder until the block is left, and how it was.

        Args:
          workdir: the run's folder; None: keep none.
          run: its fingerprint.
          warn: gets one line, once, if the file cannot be written: the run goes on, and the lines wait.
        """
        if workdir is None:
            yield
            return
        path = join(workdir, FILE)
        self._log, self._warn, self._shortest = LineLog(path), warn, _LONGEST if is_remote(path) else _SHORTEST
        if not is_remote(path) and exists(path):
            self._log.append("")  # ends a line that a kill has torn
        self.write(run=run)
        how: dict[str, str] = {}
        try:
            yield
            how = {"end": "done"}
        except Preempted:
            how = {"end": "preempted"}
            raise
        except BaseException as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            how = {"end": "failed", "reason": reason[:REASON_CHARACTERS]}
            raise
        finally:
            self.write(**how)
            self._log = None

    def write(self, **more: Any) -> None:
        """Write a record now, with the fields of `more`."""
        if self._log is None:
            return
        age = self.total()
        seconds = {phase: round(seconds, 4) for phase, seconds in self._seconds.items()}
        record = {"attempt": round(self._attempt, 4), "time": round(self._wall(), 4), "step": self.step}
        self._log.append(json.dumps({**record, "seconds": seconds, **more}))
        self._due = self._since + max(self._shortest, min(_SHARE * age, _LONGEST))
        try:
            self._log.flush()
        except LmError as error:
            if self._warn is not None:
                with contextlib.suppress(LmError):  # a full disk under log.txt too
                    self._warn(f"{error} The run goes on, and tries again with the next record.")
            self._warn = None

    def write_if_due(self) -> None:
        """Write a record if the last one is old enough."""
        if self._log is not None and self._monotonic() >= self._due:
            self.write()


class Rates:
    """Tokens and FLOPs per second between records; compilation and evaluation do not count, nor what sets up."""

    def __init__(self, timeline: Timeline):
        self._timeline, self._start = timeline, timeline.total()
        self._last: tuple[float, int, float] | None = None  # seconds, tokens, FLOPs

    def __call__(self, tokens: int, flops: float) -> tuple[float | None, float | None, float]:
        """Take the run's totals; return tokens and FLOPs per second since the last call, and seconds since the start.

        The rates are None at the first call, whose interval set up.
        """
        now, rates = (self._timeline.total("data_wait", "step", "save"), tokens, flops), (None, None)
        if self._last is not None and (elapsed := now[0] - self._last[0]) > 0:
            rates = (tokens - self._last[1]) / elapsed, (flops - self._last[2]) / elapsed
        self._last = now
        return *rates, self._timeline.total() - self._start


def read_timeline(workdir: str) -> list[dict[str, Any]]:
    """Return the records of all attempts, in the order they were written; lines that a kill has torn are left out.

    Raises:
      LmError: the file cannot be read.
    """
    found = (_parse(line) for line in LineLog(join(workdir, FILE)).read())
    return [record for record in found if record is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"attempt", "time", "step", "seconds"} <= set(record) else None


def process_start() -> float:
    """Return when this process was started, on the monotonic clock; where the system does not tell, now."""
    now = time.monotonic()
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the command's name before it may hold anything
        ticks = int(fields[19])  # starttime, the 22nd of all (proc_pid_stat(5)), since the machine's start
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - max(age, 0.0)
