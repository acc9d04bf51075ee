"""What runs on every host of a job: the verb's process, watched, its output and state kept in the job's folder.

Exit codes: 0 done, or stopped as asked; 1 and 2 wrong, once more would be the same; 42 may be started again.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from lm.errors import LmError, Preempted
from lm.launch import records
from lm.launch.job import Job
from lm.launch.policy import can_restart, why_not
from lm.launch.records import DONE, FAILED, RESTART, RUNNING, STOPPED, HostStatus, Records
from lm.launch.render import environment_of
from lm.storage import is_remote, join

HOST, LIVENESS = "LM_LAUNCH_HOST", "LM_LIVENESS_FILE"
_BEAT_SECONDS = {False: 2.0, True: 15.0}  # between two words of a host, by whether its folder is on an object store
_LOG_SECONDS = {False: 2.0, True: 60.0}  # every flush to a store makes one more object there
_LAST_LINES = 20  # of the log, in what is said of an end
_KILL_SECONDS = 60.0  # beyond the job's grace, from SIGTERM to SIGKILL for a process that does not end


def work(folder: str, environment: Mapping[str, str] = os.environ) -> int:
    """Run a job's verb on this host once and return the exit code for the target.

    Args:
      folder: the job's.
      environment: names this host ($LM_LAUNCH_HOST, "0-0" without) and the liveness file.

    Raises:
      LmError: the records cannot be read or written.
    """
    store, host = Records(folder), environment.get(HOST, "0-0")
    records.open_folder(folder)
    job = store.job()
    if (reason := store.stop_reason()) is not None:  # a target that starts what was stopped
        return _end(store, _status(store, host, STOPPED, reason=reason), 0)
    attempts, progress = store.attempts(host), records.progress_of(job)
    used = sum(attempt.seconds for attempt in attempts)
    if job.budget_hours is not None and used >= job.budget_hours * 3600:
        return _end(store, _status(store, host, STOPPED, reason=_over_budget(job)), 0)
    if reason := why_not(attempts, progress, job.max_restarts):
        tail = store.log(host).read()[-_LAST_LINES:]
        print("\n".join(tail), file=sys.stderr)
        return _end(store, _status(store, host, FAILED, reason=f"not started again: {reason}", tail=tail), 2)
    with _Attempt(store, job, host, number=len(attempts) + 1, progress=progress, used=used) as attempt:
        code = attempt.run(environment)
    return _end(store, attempt.outcome(code), attempt.exit_code(code))


def _over_budget(job: Job) -> str:
    return f"the budget of {job.budget_hours:g} hours is used up"


def _status(store: Records, host: str, state: str, *, reason: str, tail: list[str] | None = None) -> HostStatus:
    number = len(store.attempts(host))
    return HostStatus(host, state, number, time.time(), store.submissions(), reason=reason, line=(tail or [""])[-1])


def _end(store: Records, status: HostStatus, code: int) -> int:
    store.write_host(status)
    print(f"lm: host {status.host}: {status.state}{f': {status.reason}' if status.reason else ''}", file=sys.stderr)
    return code


class _Attempt:
    """One process of the verb, from its start to its end."""

    def __init__(self, store: Records, job: Job, host: str, *, number: int, progress: int, used: float):
        self._store, self._job, self._host, self._number = store, job, host, number
        self._began, self._progress, self._used = time.time(), progress, used
        self._log, self._lock, self._tail = store.log(host), threading.Lock(), [""]
        self._heard = self._flushed = time.monotonic()
        self._stop: str | None = None  # why this worker ends the process itself
        self._told: float | None = None  # when it told it so
        self._hung = False
        self._remote = is_remote(store.folder)
        # Of hosts that train together the first one alone speaks.
        self._speaks = job.is_sweep or host == "0-0"

    def __enter__(self) -> "_Attempt":
        self._store.log_attempt(self._host, "begin", began=self._began, progress=self._progress)
        self._say(f"== attempt {self._number} on host {self._host}: lm {' '.join(self._job.arguments)}")
        return self

    def __exit__(self, *_) -> None:
        self._flush()

    def run(self, environment: Mapping[str, str]) -> int:
        """Run the verb; return its exit code, 128 + N for signal N."""
        child = subprocess.Popen(
            [sys.executable, "-m", "lm", *self._job.arguments],
            env={**environment, **environment_of(self._job), **self._compilation_cache(environment)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C reaches it from here alone, once
            preexec_fn=_die_with_parent if sys.platform.startswith("linux") else None,
        )
        relays = [
            threading.Thread(target=self._relay, args=(source, target), daemon=True)
            for source, target in ((child.stdout, sys.stdout.buffer), (child.stderr, sys.stderr.buffer))
        ]
        with _forwarded(child):
            for relay in relays:
                relay.start()
            while True:
                self._beat(child)
                try:
                    child.wait(_BEAT_SECONDS[self._remote])
                    break
                except subprocess.TimeoutExpired:
                    pass
            for relay in relays:
                relay.join(5.0)  # a grandchild may hold the pipe
        code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        self._progress = records.progress_of(self._job)
        with contextlib.suppress(LmError):  # the end matters more than its record
            self._store.log_attempt(self._host, "end", ended=time.time(), code=code, progress_after=self._progress)
        return code

    def _compilation_cache(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Keep compiled programs on the store, where the next host finds them: a new one has an empty disk."""
        name = "JAX_COMPILATION_CACHE_DIR"
        if not self._remote or name in environment or name in self._job.environment:
            return {}
        return {name: join(self._job.workdir, "launch", "xla")}

    def _relay(self, source: BinaryIO, target: BinaryIO) -> None:
        for line in iter(source.readline, b""):
            with contextlib.suppress(OSError):  # nobody reads it here
                target.write(line)
                target.flush()
            self._say(line.decode(errors="replace").rstrip("\n"))

    def _say(self, line: str) -> None:
        with self._lock:
            self._log.append(line)
            self._tail = [*self._tail, line][-_LAST_LINES:]
            self._heard = time.monotonic()

    def _flush(self) -> None:
        with self._lock, contextlib.suppress(LmError):  # its lines stay queued
            self._log.flush()
        self._flushed = time.monotonic()

    def _beat(self, child: subprocess.Popen) -> None:
        """Say what this host does; end a process that hangs, or that should stop."""
        if time.monotonic() - self._flushed >= _LOG_SECONDS[self._remote]:
            self._flush()
            with contextlib.suppress(LmError):
                self._progress = records.progress_of(self._job)
        with contextlib.suppress(LmError):  # a store that is away for a while must not end the run
            self._store.write_host(self._now(RUNNING))
            self._stop = self._stop or self._store.stop_reason()
        budget = self._job.budget_hours
        if budget is not None and self._used + time.time() - self._began > budget * 3600:
            self._stop = self._stop or _over_budget(self._job)
        silent = time.monotonic() - self._heard
        is_silent = self._speaks and silent > self._job.silence_minutes * 60
        self._hung = self._hung or is_silent
        if (self._stop is not None or self._hung) and self._told is None:
            self._told = time.monotonic()
            child.terminate()
        elif self._told is not None and time.monotonic() - self._told > _KILL_SECONDS + self._job.grace_seconds:
            child.kill()
        if not is_silent and (path := os.environ.get(LIVENESS)):
            with open(path, "w") as file:
                file.write(f"{time.time()}\n")

    def _now(self, state: str, code: int | None = None, reason: str = "") -> HostStatus:
        with self._lock:
            line = self._tail[-1]
        return HostStatus(
            self._host, state, self._number, time.time(), self._store.submissions(), code, reason, line, self._progress
        )

    def outcome(self, code: int) -> HostStatus:
        """Return what is to be said of the verb's end."""
        if code == 0:
            return self._now(DONE, code)
        if self._stop is not None and code == Preempted.exit_code:
            return self._now(STOPPED, code, self._stop)
        if can_restart(code):
            silence = f", after {self._job.silence_minutes:g} minutes without a word" if self._hung else ""
            return self._now(RESTART, code, f"exit code {code}{silence}")
        return self._now(FAILED, code, f"exit code {code}: {self._tail[-1]}")

    def exit_code(self, code: int) -> int:
        """Return the worker's own exit code."""
        if code == 0 or (self._stop is not None and code == Preempted.exit_code):
            return 0
        if can_restart(code):
            return Preempted.exit_code
        return 2 if code == 2 else 1


@contextlib.contextmanager
def _forwarded(child: subprocess.Popen) -> Iterator[None]:
    """Pass SIGTERM and Ctrl-C on as SIGTERM: the verb saves and ends with 42."""

    def forward(*_) -> None:
        child.send_signal(signal.SIGTERM)

    before = {number: _handle(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            _handle(number, handler)


def _handle(number: int, handler: Callable | int | None):
    return signal.signal(number, handler) if threading.current_thread() is threading.main_thread() else None


def _die_with_parent() -> None:
    """End the verb when its worker is killed outright: two on one workdir must not be."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
