"""What a job's folder says of it: written by its workers, read by anyone who has the workdir.

WORKDIR/launch/NAME/
  job.json             the job, created once
  submitted/N.json     each time that it was given to its target
  code.tar.gz, …       the code at the job's commit, and what was rendered
  hosts/HOST.json      what each host does now, written every few seconds
  attempts/HOST.jsonl  each start and end of the verb there
  logs/HOST.log        what it printed
  stop.json            it should stop
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from typing import Any

from lm.errors import UsageError
from lm.launch.job import Job
from lm.launch.policy import Attempt
from lm.storage import LineLog, create, exists, is_remote, join, list_names, read_object, remove, write_atomic

RUNNING, DONE, FAILED, STOPPED, RESTART = "running", "done", "failed", "stopped", "restart"
LOST, WAITING = "lost", "waiting"
ENDED = (DONE, FAILED, STOPPED)
LOST_SECONDS = 90.0  # without a word


@dataclasses.dataclass(frozen=True)
class HostStatus:
    """What one host last said."""

    host: str  # "0-3": slice 0, host 3
    state: str  # RUNNING, DONE, FAILED, STOPPED, RESTART
    attempt: int  # 1 is the first since the job was submitted
    time: float  # when it said so, seconds since 1970
    submission: int = 1  # which of the job's submissions it belongs to
    code: int | None = None  # of the verb's process
    reason: str = ""  # of its end
    line: str = ""  # the last one that the verb printed
    progress: int = 0

    @property
    def is_lost(self) -> bool:
        return self.state == RUNNING and time.time() - self.time > LOST_SECONDS


@dataclasses.dataclass(frozen=True)
class JobState:
    """What a job's records say."""

    state: (
        str  # WAITING (no host has begun), RUNNING, RESTART (all have ended, and may begin again), LOST or one of ENDED
    )
    reason: str
    hosts: Sequence[HostStatus]
    silent_seconds: float | None  # since any host said anything; None: none has
    submissions: int
    stopping: bool


def progress_of(job: Job) -> int:
    """Return how far a job is, as a number that grows: checkpointed steps, and for a sweep its finished runs too."""
    if job.is_sweep:
        runs = join(job.workdir, "runs")
        done = len(list_names(join(job.workdir, "results")))
        return 10**6 * done + sum(_newest_step(join(runs, name)) for name in list_names(runs))
    if job.verb == "train":
        return _newest_step(job.workdir)
    return len([name for name in list_names(job.workdir) if name != "launch"])


def _newest_step(run: str) -> int:
    return max((int(name) for name in list_names(join(run, "checkpoints")) if name.isdecimal()), default=0)


class Records:
    """A job's folder.

    Raises:
      UsageError: (`job`) there is no job in it.
      DamagedFileError, LmError: (everything) a file of it is damaged or cannot be read or written.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def job(self) -> Job:
        path = join(self.folder, "job.json")
        if not exists(path):
            raise UsageError(f'no job in "{self.folder}". `lm launch list WORKDIR` shows what there is.')
        return Job.from_dict(read_object(path, "arguments", "target", "topology", "workdir", "name"))

    def claim(self, job: Job) -> bool:
        """Create the job's record; False: there is one already."""
        return create(join(self.folder, "job.json"), job.to_json())

    def submit(self, **what: Any) -> int:
        """Record that the job was given to its target (again); return how often it was by now."""
        number = self.submissions() + 1
        while not create(join(self.folder, "submitted", f"{number}.json"), json.dumps({"time": time.time(), **what})):
            number += 1
        return number

    def withdraw(self, number: int) -> None:
        """Forget a submission that the target did not take."""
        remove(join(self.folder, "submitted", f"{number}.json"))

    def submissions(self) -> int:
        return max((int(name.split(".")[0]) for name in list_names(join(self.folder, "submitted"))), default=0)

    def submitted(self) -> dict[str, Any]:
        """Return what was recorded of the last submission."""
        number = self.submissions()
        return read_object(join(self.folder, "submitted", f"{number}.json"), "time") if number else {}

    def ask_to_stop(self, reason: str) -> None:
        write_atomic(
            join(self.folder, "stop.json"),
            json.dumps({"reason": reason, "submission": self.submissions(), "time": time.time()}),
        )

    def stop_reason(self) -> str | None:
        """Return why the job's last submission should stop; None: it should not."""
        path = join(self.folder, "stop.json")
        if not exists(path):
            return None
        asked = read_object(path, "reason", "submission")
        return asked["reason"] if asked["submission"] == self.submissions() else None

    def write_host(self, status: HostStatus) -> None:
        write_atomic(join(self.folder, "hosts", f"{status.host}.json"), json.dumps(dataclasses.asdict(status)))

    def hosts(self) -> list[HostStatus]:
        """Return what every host of the last submission said."""
        folder, number = join(self.folder, "hosts"), self.submissions()
        known = {field.name for field in dataclasses.fields(HostStatus)}
        found = [
            read_object(join(folder, name), "host", "state", "time")
            for name in list_names(folder)
            if name.endswith(".json")
        ]
        statuses = [HostStatus(**{name: value for name, value in each.items() if name in known}) for each in found]
        return sorted(
            (status for status in statuses if status.submission == number),
            key=lambda status: [int(part) if part.isdecimal() else 0 for part in status.host.split("-")],
        )

    def attempts(self, host: str) -> list[Attempt]:
        """Return the starts of the verb on a host since the job was last submitted, oldest first."""
        attempts: list[Attempt] = []
        for line in self._attempts_log(host).read():
            record = json.loads(line)
            if record.pop("submission") != self.submissions():
                continue
            if record.pop("event") == "begin":
                attempts.append(Attempt(**record))
            else:
                attempts[-1] = dataclasses.replace(attempts[-1], **record)
        return attempts

    def log_attempt(self, host: str, event: str, **what: Any) -> None:
        """Record the "begin" or "end" of an attempt, with fields of `Attempt`."""
        log = self._attempts_log(host)
        log.append(json.dumps({"event": event, "submission": self.submissions(), **what}))
        log.flush()

    def _attempts_log(self, host: str) -> LineLog:
        return LineLog(join(self.folder, "attempts", f"{host}.jsonl"))

    def log(self, host: str) -> LineLog:
        return LineLog(join(self.folder, "logs", f"{host}.log"))

    def log_hosts(self) -> list[str]:
        """Return the hosts that have a log."""
        names = {name.split(".")[0] for name in list_names(join(self.folder, "logs"))}
        return sorted(names, key=lambda host: [int(part) if part.isdecimal() else 0 for part in host.split("-")])

    def state(self, job: Job) -> JobState:
        hosts, stop = self.hosts(), self.stop_reason()
        accelerator = job.accelerator
        state, reason = _state(hosts, accelerator.copies * accelerator.hosts, job.is_sweep)
        if stop is not None and state in (WAITING, RESTART, LOST):
            state, reason = STOPPED, stop
        silent = min((time.time() - status.time for status in hosts), default=None)
        return JobState(state, reason, hosts, silent, self.submissions(), stop is not None)


def _state(hosts: Sequence[HostStatus], expected: int, is_sweep: bool) -> tuple[str, str]:
    if not hosts:
        return WAITING, "no host has begun"
    failed = next((status for status in hosts if status.state == FAILED), None)
    running = [status for status in hosts if status.state == RUNNING and not status.is_lost]
    if failed and not (is_sweep and running):
        return FAILED, f"host {failed.host}: {failed.reason}"
    if running:
        return RUNNING, running[0].line
    lost = [status for status in hosts if status.state == RUNNING]
    if lost:
        return LOST, f"no word of host {lost[0].host} for {time.time() - lost[0].time:.0f} s"
    if any(status.state == RESTART for status in hosts):
        again = next(status for status in hosts if status.state == RESTART)
        return RESTART, f"host {again.host}: {again.reason}"
    if any(status.state == STOPPED for status in hosts):
        return STOPPED, next(status.reason for status in hosts if status.state == STOPPED)
    if len(hosts) < expected and not is_sweep:
        return RUNNING, f"{len(hosts)} of {expected} hosts are done"
    return DONE, hosts[0].line


def open_folder(folder: str) -> None:
    """Create a job's folders where files are made in them (an object store needs none)."""
    if not is_remote(folder):
        for name in ("", "submitted", "hosts", "attempts", "logs"):
            os.makedirs(join(folder, name), exist_ok=True)


def jobs_in(workdir: str) -> list[Records]:
    """Return the jobs of a workdir, and of the workdirs directly in it."""
    here = [Records(join(workdir, "launch", name)) for name in list_names(join(workdir, "launch"))]
    below = [
        Records(join(workdir, name, "launch", job))
        for name in list_names(workdir)
        if name != "launch"
        for job in list_names(join(workdir, name, "launch"))
    ]
    return [records for records in here + below if exists(join(records.folder, "job.json"))]
