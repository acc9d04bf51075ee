"""Whether a job that ended is started again. Pure: attempts in, a verdict out; the same on every target."""

import dataclasses
import signal
from collections.abc import Sequence

from lm.errors import Preempted, UsageError

WITHOUT_PROGRESS = 3  # crashes in a row after which it is a loop
_WRONG = (1, UsageError.exit_code)  # of a verb: an error of Python or of the disk, wrong usage; once more is the same
_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of the verb on one host."""

    began: float  # seconds since 1970
    progress: int  # of the job when it began: steps, runs
    ended: float | None = None  # None: it never said so, its host was lost or killed
    code: int | None = None  # of the verb's process; 128 + N for signal N
    progress_after: int | None = None

    @property
    def seconds(self) -> float:
        return 0.0 if self.ended is None else self.ended - self.began

    @property
    def has_crashed(self) -> bool:
        """Whether it ended by a signal, or with its host, and not because it was told to."""
        return self.code not in (0, Preempted.exit_code, *_WRONG, _INTERRUPTED)


def can_restart(code: int) -> bool:
    """Return whether a verb that ended so may be started again: preempted, or killed."""
    return code not in (0, *_WRONG, _INTERRUPTED)


def why_not(attempts: Sequence[Attempt], progress: int, max_restarts: int) -> str | None:
    """Return in one line why a job is not started another time; None: it may be.

    Args:
      attempts: all earlier ones since the job was submitted, oldest first.
      progress: of the job now.
      max_restarts: after the first start.
    """
    if len(attempts) > max_restarts:
        return f"it was started {len(attempts)} times, and --max-restarts is {max_restarts}"
    last = attempts[-WITHOUT_PROGRESS:]
    if len(last) == WITHOUT_PROGRESS and all(a.has_crashed for a in last) and progress <= last[0].progress:
        ends = ", ".join("lost" if a.code is None else _signal(a.code) for a in last)
        return f"it crashed {WITHOUT_PROGRESS} times in a row ({ends}) without any progress"
    return None


def _signal(code: int) -> str:
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
