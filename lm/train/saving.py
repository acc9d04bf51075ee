"""When a run saves, and what it does about a save that failed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from lm import hosts
from lm.checkpoint.store import Checkpoints
from lm.errors import LmError, Preempted

RETRIES = 3
PAUSE_SECONDS = 1.0  # between the tries of a run's last save


class Saving:
    """Regular saves, saves that are done again because they failed, and the last one.

    A failure, in the background or at once, is told of in the step in which it is known, and that step's state is saved
    instead, up to `RETRIES` times. If that does not help, training goes on, with a warning, until the
    next regular save: weeks of work live in the devices' memory, and whoever reads the line can make room on the disk.
    A run's last save (at its end, or on a signal) is tried as often and must then succeed; otherwise the run ends with
    the error.

    On several hosts a failure travels with the next step's outputs, so that all of them save together. The others may
    have to wait there until Orbax gives up on the host whose files failed (1,200 s).

    Args:
      checkpoints: of the run.
      mesh: of the run.
      every_steps: between regular saves.
      note: shows a line to the person.
    """

    def __init__(self, checkpoints: Checkpoints, mesh: Mesh, every_steps: int, note: Callable[[str], None]):
        self._checkpoints, self._every, self._note = checkpoints, every_steps, note
        self._agreement = hosts.Agreement(mesh)
        self._retries = RETRIES  # that are left until the next regular save
        self._again = False  # this host knows of a failure that is not made good

    def is_due(self, step: int, outputs: Any) -> bool:
        """Return whether to save after a step, on every host alike; each calls this once a step.

        Args:
          step: that is done.
          outputs: of its program.
        """
        is_regular = step % self._every == 0
        if is_regular:
            self._retries = RETRIES
        problem = self._checkpoints.failure()
        if problem is not None:
            self._tell(problem, step)
        again = self._agreement("a save failed" if self._again and not is_regular else None, outputs)
        self._again = False
        if again and not is_regular:
            self._retries -= 1
        return is_regular or bool(again)

    def __call__(self, step: int, items: Mapping[str, Any], *, must_succeed: bool = False, **json: Mapping) -> None:
        """Save a step's state.

        Args:
          step, items, json: as `Checkpoints.save`.
          must_succeed: wait for the files, and try again at once if they could not be written.

        Raises:
          LmError: it must succeed and did not.
        """
        for retries in range(RETRIES if must_succeed else 0, -1, -1):
            try:
                self._checkpoints.save(step, items, **json)
                if must_succeed:
                    self._checkpoints.finish()
                return
            except Preempted:
                raise
            except LmError as error:
                if not must_succeed:
                    self._tell(str(error), step)
                elif not retries:
                    raise
                else:
                    self._note(f"{error}; trying again")
                    time.sleep(PAUSE_SECONDS)

    def _tell(self, problem: str, step: int) -> None:
        self._again = self._retries > 0
        regular = step + self._every - step % self._every
        then = "trying again" if self._again else f"training goes on without, until the next save at step {regular}"
        self._note(f"{problem}; {then}")
