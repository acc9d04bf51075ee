"""The loop that keeps a job on TPU VMs going: asks for TPUs, starts the hosts, renews what was taken away, gives back.

It keeps nothing of its own: gcloud says what there is, the job's folder how far it is. So a second `lm launch` of the
same job takes up where the first was left, from any machine.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

from lm.errors import LmError, UsageError
from lm.launch import tpu_vm
from lm.launch.job import Job
from lm.launch.render import Command
from lm.launch.tpu_vm import Resource

ENDED = ("done", "failed", "stopped")
_POLL_SECONDS = 30.0
_SETTLE_SECONDS = 600.0  # to install and say the first word
_SILENT_SECONDS = 300.0  # without any host's heartbeat
_BACKOFF_SECONDS = (15.0, 600.0)  # the first and the longest wait after a failure
_TRIES = 20  # of one command in a row, about two hours and a half; a quota may take longer
_FRUITLESS = 3  # starts without a word of any host
_WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING", "DELETING")
_GONE = "gone"
_ALIVE = ("READY", "CREATING", "STARTING", "RESTARTING", "REPAIRING")  # of a slice: it is there or comes back by itself
# What gcloud says of a request that no second try makes right, and of a person that it does not know.
_WRONG = ("PERMISSION_DENIED", "INVALID_ARGUMENT", "SERVICE_DISABLED")
_UNKNOWN_PERSON = ("active account", "UNAUTHENTICATED", "Reauthentication", "invalid_grant")


@dataclasses.dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def last_line(self) -> str:
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        return (errors or lines or [f"exit code {self.code}"])[-1].strip()


@dataclasses.dataclass(frozen=True)
class JobState:
    """What the records in the job's folder say."""

    status: (
        str  # running, done, failed, stopped, restartable (all hosts ended with 42 or died), unknown (no record yet)
    )
    reason: str = ""
    silent_seconds: float | None = None  # since any host's last heartbeat; None: there was none
    lost: tuple[str, ...] = ()  # hosts ("0-3") whose worker ended with 42, died or fell silent
    finished: tuple[str, ...] = ()  # hosts whose worker ended with 0


class Run(Protocol):
    """Runs a command in a folder that holds the rendering's files and the code, and waits for it."""

    def __call__(self, command: Command) -> Completed: ...


def drive(
    job: Job,
    *,
    run: Run,
    state: Callable[[], JobState],
    note: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobState:
    """Keep the job's TPUs and hosts going until its records say that it is done, failed or stopped; give all back.

    Ctrl-C leaves everything as it is.

    Args:
      job: named, and checked by `tpu_vm.render`.
      run: runs gcloud.
      state: reads the job's records.
      note: tells the person one line.
      sleep, clock: in seconds.

    Returns:
      The job's last state; "running" after Ctrl-C.

    Raises:
      UsageError: gcloud refuses the command or the request itself.
      LmError: more preemptions than `job.max_restarts`, or a command that keeps failing, or hosts that never start.
    """
    leases = [_Lease(job, resource, run, note, clock) for resource in tpu_vm.resources(job)]
    now, failures = JobState("unknown"), 0
    try:
        while not all(lease.given_back for lease in leases):
            try:
                now, failures = state(), 0
            except LmError as error:  # the store may be away for a moment
                failures += 1
                if failures == _TRIES:
                    raise
                note(f"the job's records cannot be read, tried again: {error}")
                sleep(_backoff(failures))
                continue
            if now.status in ENDED:
                break
            for lease in leases:
                lease.attend(now)
            sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        note(_left(job))
        return dataclasses.replace(now, status="running")
    except BaseException:
        _give_back([lease for lease in leases if lease.may_be_there], sleep)
        raise
    _give_back(leases, sleep)
    return now


def _left(job: Job) -> str:
    deletes = "; ".join(str(tpu_vm.delete(job, resource)) for resource in tpu_vm.resources(job))
    return (
        f"{job.name} goes on without this command, and costs money, but nobody renews it after a preemption. The same "
        f"command takes it up again; `lm launch` status, logs and stop find it in {job.workdir}; the TPUs alone are "
        f"given back by: {deletes}"
    )


def _give_back(leases: list["_Lease"], sleep: Callable[[float], None]) -> None:
    """Delete all resources; those that cannot be are named, with the command that the person must run."""
    for attempt in range(1, 6):
        leases = [lease for lease in leases if not lease.give_back()]
        if not leases:
            return
        sleep(_backoff(attempt))
    for lease in leases:
        lease.note(f"STILL THERE, AND COSTS MONEY: {lease.resource.name}. Run: {lease.delete_command}")


def _backoff(failures: int) -> float:
    first, longest = _BACKOFF_SECONDS
    return min(longest, first * 2 ** (min(failures, 10) - 1))


class _Failed(Exception):
    """A command failed in a way that may pass."""


class _Lease:
    """One queued resource on its way through the states that gcloud reports."""

    def __init__(self, job: Job, resource: Resource, run: Run, note: Callable[[str], None], clock: Callable[[], float]):
        self.job, self.resource, self.clock = job, resource, clock
        self._run, self._note = run, note
        self.hosts = {f"{number}-{i}" for number in resource.nodes for i in range(job.accelerator.hosts)}
        self.losses = 0  # how often it was taken away
        self.given_back = False
        self.may_be_there = False
        self._there = False  # when last looked at
        self._granted = False  # gcloud has taken this request once
        self._answered = False  # gcloud knows this person
        self._started: float | None = None  # when the hosts were told to start, by this command
        self._fruitless = 0  # starts since any host had a word
        self._failures = 0  # commands in a row
        self._refusals = 0  # requests in a row that never became active
        self._not_before = -float("inf")
        self._trouble: float | None = None  # since when the hosts seem to need a start
        self._said = ""
        self._since = clock()  # of the state that is told

    def note(self, text: str) -> None:
        """Tell the person, once."""
        if text != self._said:
            self._said = text
            self._note(f"{self.resource.name}: {text}")

    def attend(self, now: JobState) -> None:
        """Do the one thing that the resource's state asks for."""
        if self.given_back or self.clock() < self._not_before:
            return
        if self.job.is_sweep and self.hosts <= set(now.finished):
            self.note("its hosts have nothing left to do")
            self.given_back = self.give_back()
            return
        try:
            self._attend(now)
            self._failures = 0
        except _Failed as error:
            self._failures += 1
            seconds = _backoff(self._failures)
            self._not_before = self.clock() + seconds
            self.note(f"tried again in {seconds:.0f} s: {error}")
            if self._failures >= _TRIES and "quota" not in str(error).lower():
                raise LmError(f"{self.resource.name}: failed {self._failures} times in a row: {error}") from error

    def _attend(self, now: JobState) -> None:
        phase, message = self._phase()
        if phase == _GONE:
            if self._there:
                self._lose("it is gone")
            self._execute(tpu_vm.create(self.job, self.resource))
            self._there = self._granted = self.may_be_there = True
            self._started, self._since = None, self.clock()
            self.note("asked for")
            return
        self._there = self._granted = self.may_be_there = True
        if phase == "ACTIVE":
            self._refusals = 0
            self._keep_hosts(now)
        elif phase in _WAITING:
            self.note(f"{phase} for {_duration(self.clock() - self._since)}")
        else:  # SUSPENDED, FAILED
            self._renew(f"{phase} {message}".strip())

    def _phase(self) -> tuple[str, str]:
        """Return the state that gcloud reports, and what it says of a failure."""
        done = self._execute(tpu_vm.describe(self.job, self.resource), may_be_gone=True)
        if done is None:
            return _GONE, ""
        phase, _, message = done.stdout.strip().partition("\t")
        return phase, message

    def _keep_hosts(self, now: JobState) -> None:
        """Start the hosts, and again those that died on machines that live."""
        if self._started is None:
            try:
                for number, node in self.resource.nodes.items():
                    self._execute(tpu_vm.copy(self.job, node))
                    self._execute(tpu_vm.start(self.job, number, node))
            except _Failed:
                if not self._renewed_if_lost():
                    raise
                return
            self._started = self.clock()
            self.note(f"ACTIVE: {len(self.hosts)} hosts started")
            return
        ago = self.clock() - self._started
        if now.silent_seconds is not None and now.silent_seconds < ago:
            self._fruitless = 0
        lost = self.hosts & set(now.lost)
        silent = now.silent_seconds is None or now.silent_seconds > _SILENT_SECONDS
        if not (lost or silent or now.status == "restartable"):
            self._trouble = None
            self.note("running")
            return
        # A host that ended with 42 starts again by itself, in seconds: trouble must last.
        self._trouble = self.clock() if self._trouble is None else self._trouble
        if ago < _SETTLE_SECONDS or self.clock() - self._trouble < 2 * _POLL_SECONDS or self._renewed_if_lost():
            return
        self._trouble = None
        self._fruitless += 1
        if self._fruitless >= _FRUITLESS:
            node = next(iter(self.resource.nodes.values()))
            last = self._run(tpu_vm.log(self.job, node, lines=20, follow=False)).stdout.strip()
            raise LmError(f"{self.resource.name}: started {self._fruitless} times without a word of its hosts.\n{last}")
        self._started = None  # the next look starts them
        self.note(f"to be started again: {', '.join(sorted(lost)) or now.reason or 'no word of its hosts'}")

    def _renewed_if_lost(self) -> bool:
        """Renew the resource if gcloud calls it active though one of its slices is not: it may be slow to tell."""
        for node in self.resource.nodes.values():
            done = self._execute(tpu_vm.describe_node(self.job, node), may_be_gone=True)
            phase = done.stdout.strip() if done else _GONE
            if phase not in _ALIVE:
                self._renew(f"{node} is {phase}")
                return True
        return False

    def _renew(self, why: str) -> None:
        """Delete what was taken away; the next look asks for it again, later if it never came to anything."""
        self._execute(tpu_vm.delete(self.job, self.resource), may_be_gone=True)
        self._there, self._started, self._trouble = False, None, None
        self._lose(why)
        self._refusals += 1
        if self._refusals > 1:
            self._not_before = self.clock() + _backoff(self._refusals)

    def _lose(self, why: str) -> None:
        self.losses += 1
        if self.losses > self.job.max_restarts:
            raise LmError(f"{self.resource.name}: lost more than {self.job.max_restarts} times (--max-restarts): {why}")
        self.note(f"lost ({self.losses} of {self.job.max_restarts}): {why}; asked for again")

    def give_back(self) -> bool:
        """Delete the resource, whatever its state. Returns whether it is gone."""
        if self.given_back:
            return True
        done = self._run(tpu_vm.delete(self.job, self.resource))
        gone = done.code == 0 or _is_missing(done)
        self.note("given back" if gone else f"cannot be given back: {done.last_line}")
        return gone

    @property
    def delete_command(self) -> str:
        return str(tpu_vm.delete(self.job, self.resource))

    def _execute(self, command: Command, may_be_gone: bool = False) -> Completed | None:
        """Run a command; None: what it is about is not there, which may be.

        Raises:
          UsageError: there is no use in trying again.
          _Failed: there may be.
        """
        done = self._run(command)
        if done.code == 0:
            self._answered = True
            return done
        if may_be_gone and _is_missing(done):
            self._answered = True
            return None
        if "create" in command.argv and "ALREADY_EXISTS" in done.stderr:
            return done
        remote = "ssh" in command.argv or "scp" in command.argv  # they may end with the host's code
        wrong = done.code == 2 and (not remote or "(gcloud." in done.stderr)
        refused = not self._granted and any(word in done.stderr for word in _WRONG)
        unknown = not self._answered and any(word in done.stderr for word in _UNKNOWN_PERSON)
        if wrong or refused or unknown:
            raise UsageError(f"{done.last_line} (of: {command})")
        if "create" in command.argv:
            self.may_be_there = True  # the answer may have got lost
        raise _Failed(done.last_line)


def _is_missing(done: Completed) -> bool:
    return "NOT_FOUND" in done.stderr or "was not found" in done.stderr


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
