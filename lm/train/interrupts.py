"""SIGTERM and Ctrl-C: stop where nothing is lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from lm.errors import Preempted


class Interrupts:
    """Whether the process was asked to stop.

    Outside `deferred()` a signal raises `Preempted` at once; inside, it sets `requested`, and the
    loop saves and stops at the end of its step. A second Ctrl-C stops at once.
    """

    def __init__(self):
        self.requested: str | None = None  # the signal's name
        self._deferring = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["Interrupts"]:
        """Handle SIGTERM and SIGINT within the block (in the main thread; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block end its step before it stops."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, _frame) -> None:
        name, again = signal.Signals(number).name, self.requested is not None
        self.requested = name  # outside the loop too: a library that swallows the exception does not lose the signal
        if not self._deferring:
            raise Preempted(f"stopped by {name} outside the training loop; run the same command to start again.")
        if again and number == signal.SIGINT:
            raise Preempted("stopped at once by a second Ctrl-C, without saving; run the same command to continue.")
