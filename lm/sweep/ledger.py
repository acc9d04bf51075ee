"""The ledger of a sweep: one result per run, and who is at work on which.

Files in the sweep's folder, local or on an object store, where nothing can be appended and any number of workers
meet:

  results/<id>.json      written once, by the first who finishes the run
  claims/<id>.<n>.json   the n-th claim of a run: who works on it and until when, renewed while it works
  ledger.jsonl           all results, derived

A claim ends when its lease has run out, or at once when its process was on this machine and is gone.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.errors import LmError
from lm.storage import create, join, list_names, make_folder, read_object, remove, write_atomic

LEASE_SECONDS = 120.0  # renewed every third of it; longer than clocks of different hosts differ

Result = Mapping[str, Any]


class Ledger:
    """The results and claims of a sweep's folder, as one process sees them."""

    def __init__(self, folder: str):
        self._folder = folder
        self._results, self._claims = join(folder, "results"), join(folder, "claims")
        make_folder(self._results)
        make_folder(self._claims)

    def finished(self) -> set[str]:
        """Return the ids of the runs that have a result, failed ones included."""
        return {name.removesuffix(".json") for name in list_names(self._results) if name.endswith(".json")}

    def result(self, run_id: str) -> dict[str, Any]:
        """Return a run's result.

        Raises:
          DamagedFileError: the file holds no JSON object.
        """
        return read_object(join(self._results, f"{run_id}.json"))

    def record(self, result: Result) -> bool:
        """Write a run's result unless it has one; returns whether it had none."""
        return create(join(self._results, f"{result['id']}.json"), json.dumps(result, indent=1, default=str) + "\n")

    def forget(self, run_id: str) -> None:
        """Remove a run's result, so that it runs again."""
        remove(join(self._results, f"{run_id}.json"))

    def derive(self, order: Sequence[str]) -> None:
        """Write `ledger.jsonl`: the results there are, in the order of the plan's ids."""
        there = self.finished()
        rows = [self.result(run_id) for run_id in dict.fromkeys(order) if run_id in there]
        write_atomic(join(self._folder, "ledger.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))

    def is_held(self, run_id: str) -> bool:
        """Return whether a process works on a run now."""
        claim = self._claim(run_id)
        return claim is not None and _is_live(claim)

    def was_left_by(self, run_id: str, pid: int) -> bool:
        """Return whether a process of this machine, which is gone, was the last to work on a run, and did not end it."""
        claim = self._claim(run_id)
        mine = claim is not None and (claim["host"], claim["pid"]) == (socket.gethostname(), pid)
        return mine and claim["until"] > 0 and run_id not in self.finished()

    def _claim(self, run_id: str) -> dict[str, Any] | None:
        number = self._newest(run_id)
        return None if number is None else read_object(self._path(run_id, number))

    @contextlib.contextmanager
    def claimed(self, run_id: str) -> Iterator[bool]:
        """Hold a run for this process within the block; gives False if another has it or it is finished."""
        number = self._newest(run_id)  # looked at once: a claim made meanwhile has the number that this one would have
        if number is not None and _is_live(read_object(self._path(run_id, number))):
            yield False
            return
        path = self._path(run_id, 0 if number is None else number + 1)
        if not create(path, _claim(LEASE_SECONDS)):  # another was faster
            yield False
            return
        released = threading.Event()

        def renew() -> None:
            while not released.wait(LEASE_SECONDS / 3):
                with contextlib.suppress(LmError):  # an outage shorter than the lease does no harm
                    write_atomic(path, _claim(LEASE_SECONDS))

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield run_id not in self.finished()
        finally:
            released.set()
            thread.join()
            with contextlib.suppress(LmError):
                write_atomic(path, _claim(0))

    def _path(self, run_id: str, number: int) -> str:
        return join(self._claims, f"{run_id}.{number}.json")

    def _newest(self, run_id: str) -> int | None:
        matches = (re.fullmatch(re.escape(run_id) + r"\.(\d+)\.json", name) for name in list_names(self._claims))
        return max((int(match[1]) for match in matches if match), default=None)


def _claim(seconds: float) -> str:
    pid, until = os.getpid(), time.time() + seconds if seconds else 0
    return json.dumps({"host": socket.gethostname(), "pid": pid, "started": _started(pid), "until": until})


def _is_live(claim: Mapping[str, Any]) -> bool:
    if claim["until"] < time.time():
        return False
    is_here = claim["host"] == socket.gethostname() and claim["started"] is not None
    return not is_here or _started(claim["pid"]) == claim["started"]


def _started(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks: a pid may come again. None: unknown, or no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            after_name = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else after_name[19]
