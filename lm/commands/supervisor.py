"""The parent of a process that trains with others: it outlives what aborts in C++ and says what happened.

When a process of the run dies, JAX's coordination service aborts all others (SIGABRT and a page of C++ log). The
parent, which never imports JAX, turns that into one line and an exit code. It passes SIGTERM and Ctrl-C on, and
everything else through.
"""

import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from lm.commands.cluster import ANNOUNCEMENT, CHILD
from lm.errors import Preempted

_KEPT = 1 << 16  # bytes of stderr in which the reason of an abort is looked for
_ABORT_SECONDS = 5.0  # in which an abort follows the first line about it
_ABORT = re.compile(rb"(?m)^[EF]\d{4} \d\d:\d\d:\d\d\S* +\d+ (?:coordination_service|client\.h)")
_SILENT = re.compile(r"stopped sending heartbeats\):\s*((?:\S*\d+\s+)+)")
_CONTINUES = "the run continues from its last checkpoint with the same command."


def supervise(arguments: Sequence[str]) -> int:
    """Run `lm ARGUMENTS` in a child process and return its exit code; 42 if another process's death ended it."""
    environment = os.environ | {CHILD: str(os.getpid())}
    if sys.stderr.isatty():
        environment.setdefault("TTY_COMPATIBLE", "1")  # rich: the pipe ends in a terminal
    child = subprocess.Popen(
        [sys.executable, "-m", "lm", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C reaches it from here alone, once
    )
    forwarded = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _: child.send_signal(number)) for number in forwarded}
    try:
        relay = _Relay(child)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    reason = reason_of_abort(relay.tail.decode(errors="replace"), relay.announcement) if code == -signal.SIGABRT else ""
    if reason:
        raise Preempted(reason)
    relay.release()
    if code < 0:
        print(f"lm: the training process was ended by {signal.Signals(-code).name}.", file=sys.stderr)
        return 128 - code
    return code


def reason_of_abort(log: str, announcement: str = "") -> str:
    """Return in one line why JAX's coordination service aborted a process; empty: it did not.

    Args:
      log: the end of the process's stderr.
      announcement: the line in which it said which process it is.
    """
    if "JAX distributed service detected fatal errors" not in log:
        return ""
    if "CoordinationService/RegisterTask" in log:
        return (
            "not all hosts came within config.parallel.startup_seconds, or process 0 cannot be reached (is its port "
            "open?); the same command tries again."
        )
    found = ANNOUNCEMENT.search(announcement)
    _, count, heartbeat = found.groups() if found else ("?", "several", "?")
    silent = _SILENT.search(log)
    if silent:
        numbers = re.findall(r"(\d+)\s", silent[1])
        names = f"process {numbers[0]}" if len(numbers) == 1 else f"processes {', '.join(numbers)}"
        return f"{names} of {count} died (no heartbeat for {heartbeat} s); {_CONTINUES}"
    if "Failed to send RPC to coordination service" in log:
        return f"process 0 of {count}, the coordinator, died or cannot be reached; {_CONTINUES}"
    return f"another of {count} processes ended (its own output says why); {_CONTINUES}"


class _Relay:
    """Passes a child's stderr on until it ends, but holds back what C++ says on the way to an abort."""

    def __init__(self, child: subprocess.Popen):
        self.tail, self.announcement = b"", ""
        self._held, self._held_since = b"", 0.0
        descriptor = child.stderr.fileno()
        while True:
            ready, _, _ = select.select([descriptor], [], [], 0.2)
            chunk = os.read(descriptor, _KEPT) if ready else b""
            if chunk:
                self._take(chunk)
            elif ready or child.poll() is not None:  # no end of file where a grandchild has the pipe
                return
            if self._held and time.monotonic() - self._held_since > _ABORT_SECONDS:
                self.release()

    def _take(self, chunk: bytes) -> None:
        self.tail = (self.tail + chunk)[-_KEPT:]
        if not self.announcement and (found := ANNOUNCEMENT.search(self.tail.decode(errors="replace"))):
            self.announcement = found[0]
        if self._held:
            self._held += chunk
            return
        start = _ABORT.search(chunk)  # C++ writes a line at a time
        shown = chunk[: start.start()] if start else chunk
        sys.stderr.buffer.write(shown)
        sys.stderr.buffer.flush()
        if start:
            self._held, self._held_since = chunk[start.start() :], time.monotonic()

    def release(self) -> None:
        """Show what was held back: there was no abort."""
        sys.stderr.buffer.write(self._held)
        sys.stderr.buffer.flush()
        self._held = b""


def die_with_parent() -> None:
    """End this process when its supervisor is killed outright (Linux; elsewhere it would go on alone)."""
    if sys.platform.startswith("linux"):
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != int(os.environ[CHILD]):
        os.kill(os.getpid(), signal.SIGKILL)
