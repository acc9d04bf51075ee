"""The default executor: worker processes of this machine."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm.corpus.task import Failure, Task
from lm.errors import LmError

_REPORT_SECONDS = 0.5  # between two reports of a task's progress


class LocalExecutor:
    """Runs tasks in spawned processes, one task at a time each; a process that dies takes no other task with it."""

    def __init__(self, workers: int | None = None):
        """`workers`: processes; None: one per core."""
        self._most = workers or _cores()
        self._workers: list[_Worker] = []  # started when there is work, kept from stage to stage

    def run(
        self, tasks: Sequence[Task], moved: Callable[[int, int], None]
    ) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """Yield (index, stats or Failure) as tasks end, in any order.

        Args:
          tasks: none of them waits for another.
          moved: told (index, bytes done) of a task that is under way.
        """
        waiting = list(range(len(tasks)))[::-1]
        while len(self._workers) < min(self._most, len(tasks)):
            self._workers.append(_Worker())
        try:
            for worker in self._workers[: len(tasks)]:
                worker.give(waiting.pop(), tasks)
            while busy := {worker.channel: worker for worker in self._workers if worker.index is not None}:
                for channel in multiprocessing.connection.wait(list(busy)):
                    worker = busy[channel]
                    message = worker.receive()
                    if isinstance(message, int):
                        moved(worker.index, message)
                        continue
                    index, worker.index = worker.index, None
                    if not worker.is_alive:
                        worker.replace()
                    if waiting:
                        worker.give(waiting.pop(), tasks)
                    yield index, message
        finally:
            for worker in self._workers:
                if worker.index is not None:  # broken off: what it does is of no use any more
                    worker.stop()
            self._workers = [worker for worker in self._workers if worker.index is None]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()
        self._workers = []


class _Worker:
    """One process and the pipe to it."""

    def __init__(self):
        self.index: int | None = None  # of the task that it has
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, os.getpid()), daemon=True)
        self._process.start()
        other.close()
        self.is_alive = True

    def give(self, index: int, tasks: Sequence[Task]) -> None:
        if not self._process.is_alive():  # it died while it had nothing to do
            self.replace()
        self.index = index
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is received like an answer
            self.channel.send(tasks[index])

    def receive(self) -> int | dict[str, Any] | Failure:
        try:
            return self.channel.recv()
        except (EOFError, OSError):  # at its death, or in the middle of an answer
            self._process.join()
            self.is_alive = False
            code = self._process.exitcode
            if code is not None and code < 0:
                name = signal.Signals(-code).name
                return Failure(f"its process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}.")
            return Failure(f"its process ended with exit code {code}.")

    def replace(self) -> None:
        self.channel.close()
        self._start()

    def stop(self) -> None:
        self._process.kill()  # nothing of a task counts before its result is written
        self._process.join()
        self.channel.close()


def _serve(channel, parent: int) -> None:
    """Do tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform.startswith("linux"):
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            return
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            channel.send(int(done))

    while True:
        try:
            task = channel.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            channel.send(attempt(task, report))
        except BrokenPipeError:
            return


def attempt(task: Task, report: Callable[[int], None] = lambda done: None) -> dict[str, Any] | Failure:
    """Do a task; what goes wrong with it becomes a Failure, in one line."""
    try:
        return task.run(report)
    except LmError as error:
        return Failure(str(error))
    except MemoryError:
        return Failure("out of memory; lower config.part_bytes, or give fewer --workers.")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        return Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
