"""The loop of TPU VMs against a cloud that misbehaves, with a clock of its own."""

import dataclasses

import pytest

from lm.errors import LmError, UsageError
from lm.launch import tpu_vm
from lm.launch.job import Job
from lm.launch.render import Command
from lm.launch.tpu_vm_driver import Completed, JobState, drive
from tests.launch.test_tpu_vm import job


class Cloud:
    """A stand-in for gcloud and the job's records, with a clock of its own.

    `script` changes it: seconds -> a function that is called once when the time has come.
    """

    def __init__(self, one: Job, script=None):
        self.job, self.script = one, dict(script or {})
        self.time = 0.0
        self.phases: dict[str, str] = {}  # resource -> state
        self.nodes: dict[str, str] = {}  # node -> state, where it is not READY
        self.answers: list[tuple[str, Completed]] = []  # verb -> what its next call gives
        self.calls: list[str] = []
        self.state = JobState("running", silent_seconds=5.0)
        self.notes: list[str] = []
        self.granted = True  # what is asked for becomes active at once

    def run(self, command: Command) -> Completed:
        assert command.argv[:4] == ("gcloud", "alpha", "compute", "tpus")
        verb = command.argv[5] if command.argv[5] != "describe" else f"describe-{command.argv[4]}"
        name = command.argv[-5] if verb == "scp" else command.argv[6]
        for position, (of, answer) in enumerate(self.answers):
            if of == verb:
                self.calls.append(verb)
                self.answers.pop(position)
                return answer
        if verb == "describe-queued-resources":
            known = name in self.phases
            return (
                Completed(0, f"{self.phases[name]}\t\n")
                if known
                else Completed(1, "", "ERROR: (gcloud.x) NOT_FOUND: it")
            )
        if verb == "describe-tpu-vm":
            return Completed(0, self.nodes.get(name, "READY") + "\n")
        self.calls.append(verb)
        if verb == "create":
            self.phases[name] = "ACTIVE" if self.granted else "WAITING_FOR_RESOURCES"
        if verb == "delete":
            self.phases.pop(name, None)
        if verb == "ssh" and "tail" in command.argv[-1]:
            return Completed(0, "installing failed (3 of 3)\n")
        return Completed(0)

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        assert self.time < 100 * 3600, f"never ends: {self.notes}"
        for when in sorted(when for when in self.script if when <= self.time):
            self.script.pop(when)()

    def drive(self) -> JobState:
        return drive(
            self.job,
            run=self.run,
            state=lambda: self.state,
            note=self.notes.append,
            sleep=self.sleep,
            clock=lambda: self.time,
        )

    def set(self, **changes):
        """Return a function that changes the job's state."""
        return lambda: setattr(self, "state", dataclasses.replace(self.state, **changes))

    def ends(self, seconds: float, status: str = "done") -> "Cloud":
        self.script[seconds] = self.set(status=status)
        return self

    def phase(self, seconds: float, phase: str) -> "Cloud":
        self.script[seconds] = lambda: self.phases.update(dict.fromkeys(self.phases, phase))
        return self


ALL = ["create", "scp", "ssh"]


@pytest.mark.parametrize("status", ["done", "failed", "stopped"])
def test_a_job_is_asked_for_started_watched_and_given_back_however_it_ends(status):
    cloud = Cloud(job()).ends(3600, status)
    assert cloud.drive().status == status
    assert cloud.calls == [*ALL, "delete"] and not cloud.phases


def test_waiting_for_tpus_takes_as_long_as_it_takes_and_says_how_long():
    cloud = Cloud(job())
    cloud.granted = False
    cloud.phase(9 * 3600, "PROVISIONING").phase(10 * 3600, "ACTIVE").ends(11 * 3600).drive()
    assert cloud.calls == [*ALL, "delete"]
    assert any("WAITING_FOR_RESOURCES for 8 h 30 min" in note for note in cloud.notes)


@pytest.mark.parametrize("phase", ["SUSPENDED", "FAILED"])
def test_preempted_tpus_are_deleted_and_asked_for_again(phase):
    cloud = Cloud(job()).phase(1000, phase).phase(5000, phase).ends(9000)
    assert cloud.drive().status == "done"
    assert cloud.calls == [*ALL, "delete", *ALL, "delete", *ALL, "delete"]


def test_tpus_that_are_gone_without_a_word_are_asked_for_again():
    cloud = Cloud(job()).ends(9000)
    cloud.script[1000] = cloud.phases.clear
    assert cloud.drive().status == "done" and cloud.calls == [*ALL, *ALL, "delete"]


def test_tpus_that_keep_vanishing_are_given_up():
    cloud = Cloud(job(max_restarts=2))
    for seconds in range(1000, 9000, 1000):
        cloud.script[seconds] = cloud.phases.clear
    with pytest.raises(LmError, match="lost more than 2 times"):
        cloud.drive()


def test_a_slice_that_is_preempted_while_its_request_still_counts_as_active_is_renewed():
    cloud = Cloud(job()).ends(9000)
    (node,) = tpu_vm.resources(cloud.job)[0].nodes.values()
    cloud.script[1000] = lambda: (cloud.nodes.update({node: "PREEMPTED"}), cloud.set(silent_seconds=900.0)())
    cloud.script[2500] = lambda: (cloud.nodes.clear(), cloud.set(silent_seconds=5.0)())
    assert cloud.drive().status == "done"
    assert cloud.calls[:7] == [*ALL, "delete", "create", "scp", "ssh"]


def test_more_preemptions_than_allowed_end_the_job_and_leave_nothing_behind():
    cloud = Cloud(job(max_restarts=2))
    for seconds in range(1000, 9000, 1000):
        cloud.phase(seconds, "SUSPENDED")
    with pytest.raises(LmError, match="lost more than 2 times"):
        cloud.drive()
    assert cloud.calls.count("create") == 3 and not cloud.phases


def test_requests_that_keep_failing_are_made_ever_less_often():
    cloud = Cloud(job())
    cloud.granted = False
    times = []
    run = cloud.run

    def refusing(command):
        done = run(command)
        if "create" in command.argv:
            times.append(cloud.time)
            cloud.phases = dict.fromkeys(cloud.phases, "FAILED")
        return done

    cloud.run = refusing
    cloud.ends(3 * 3600).drive()
    waits = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert waits[0] <= 60 and waits[-1] >= 600 and waits == sorted(waits)


@pytest.mark.parametrize(
    "answer",
    [
        (
            "create",
            Completed(1, "", "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded"),
        ),
        ("create", Completed(1, "", "ERROR: (gcloud.x) ALREADY_EXISTS: Resource exists")),
        ("scp", Completed(255, "", "ssh: connect to host 10.0.0.1 port 22: Connection refused")),
        ("ssh", Completed(2, "", "bash: run.sh: No such file or directory")),
        ("describe-queued-resources", Completed(1, "", "ERROR: gcloud crashed (ConnectionError): network unreachable")),
        ("describe-tpu-vm", Completed(1, "", "ERROR: gcloud crashed (ConnectionError): network unreachable")),
        ("delete", Completed(1, "", "ERROR: (gcloud.x) UNAVAILABLE: try later")),
    ],
    ids=lambda answer: f"{answer[0]}: {answer[1].stderr[-20:]}",
)
def test_a_command_that_fails_for_a_moment_is_tried_again(answer):
    cloud = Cloud(job()).phase(4000, "SUSPENDED").ends(9000)
    cloud.answers = [answer, answer]
    assert cloud.drive().status == "done" and not cloud.phases


def test_a_quota_may_be_refused_for_a_day():
    refused = Completed(1, "", "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota limit has been exceeded")
    cloud = Cloud(job()).ends(80 * 3600)
    cloud.answers = [("create", refused)] * 140
    assert cloud.drive().status == "done" and cloud.calls.count("create") == 141


def test_what_keeps_failing_for_hours_is_given_up_and_given_back():
    cloud = Cloud(job())
    cloud.answers = [("scp", Completed(255, "", "Connection refused"))] * 100
    with pytest.raises(LmError, match="20 times in a row: Connection refused"):
        cloud.drive()
    assert not cloud.phases


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (2, "ERROR: (gcloud.alpha) unrecognized arguments: --sopt"),
        (1, "ERROR: (gcloud.alpha) PERMISSION_DENIED: no right"),
        (1, "ERROR: (gcloud.alpha) INVALID_ARGUMENT: no such type"),
    ],
)
def test_a_request_that_is_wrong_is_not_tried_again(code, said):
    cloud = Cloud(job())
    cloud.answers = [("create", Completed(code, "", said))] * 9
    with pytest.raises(UsageError) as caught:
        cloud.drive()
    assert said in str(caught.value) and cloud.calls == ["create"]


def test_who_is_not_logged_in_is_told_so_at_once():
    cloud = Cloud(job())
    said = "ERROR: (gcloud.alpha) You do not currently have an active account selected."
    cloud.answers = [("describe-queued-resources", Completed(1, "", said))] * 9
    with pytest.raises(UsageError, match="active account"):
        cloud.drive()
    assert cloud.calls == ["describe-queued-resources"] and cloud.time == 0


def test_a_second_launch_takes_a_running_job_up_without_asking_again():
    cloud = Cloud(job()).ends(3600)
    cloud.phases = {cloud.job.name: "ACTIVE"}
    assert cloud.drive().status == "done"
    assert cloud.calls == ["scp", "ssh", "delete"]  # the start does nothing where the script runs


def test_a_job_that_was_done_while_nobody_looked_is_given_back():
    cloud = Cloud(job())
    cloud.phases, cloud.state = {cloud.job.name: "ACTIVE"}, JobState("done")
    assert cloud.drive().status == "done" and cloud.calls == ["delete"] and not cloud.phases


def test_ctrl_c_leaves_the_job_as_it_is_and_says_how_to_stop_it():
    def interrupt():
        raise KeyboardInterrupt

    cloud = Cloud(job(), {1000: interrupt})
    assert cloud.drive().status == "running"
    assert cloud.calls == ALL and cloud.phases
    assert "queued-resources delete" in cloud.notes[-1] and "takes it up again" in cloud.notes[-1]


def test_an_error_of_ours_gives_the_tpus_back():
    def bug():
        raise ZeroDivisionError

    cloud = Cloud(job(), {1000: bug})
    with pytest.raises(ZeroDivisionError):
        cloud.drive()
    assert cloud.calls == [*ALL, "delete"] and not cloud.phases


def test_tpus_that_cannot_be_given_back_are_named_with_the_command_to_run():
    cloud = Cloud(job()).ends(3600)
    cloud.answers = [("delete", Completed(1, "", "ERROR: (gcloud.x) UNAVAILABLE"))] * 99
    cloud.drive()
    assert "STILL THERE" in cloud.notes[-1] and str(tpu_vm.render(cloud.job).stop[0]) in cloud.notes[-1]


def test_hosts_that_died_on_machines_that_live_are_started_again():
    cloud = Cloud(job()).ends(9000)
    cloud.script[2000] = cloud.set(lost=("0-3",))
    cloud.script[2300] = cloud.set(lost=())
    assert cloud.drive().status == "done"
    assert cloud.calls == [*ALL, "scp", "ssh", "delete"]


def test_a_host_that_comes_back_by_itself_is_left_alone():
    cloud = Cloud(job()).ends(9000)
    cloud.script[2000] = cloud.set(status="restartable", lost=("0-0", "0-1"))
    cloud.script[2040] = cloud.set(status="running", lost=())
    cloud.drive()
    assert cloud.calls == [*ALL, "delete"]


def test_hosts_that_never_say_a_word_are_given_up_with_the_end_of_their_log():
    cloud = Cloud(job())
    cloud.state = JobState("unknown")
    with pytest.raises(LmError, match="started 3 times without a word") as caught:
        cloud.drive()
    assert "installing failed" in str(caught.value)
    assert cloud.calls == ["create", *["scp", "ssh"] * 3, "ssh", "delete"] and cloud.time < 2 * 3600


def test_one_slice_of_a_sweep_is_renewed_without_the_others():
    cloud = Cloud(job("2*v6e:2x2", "sweep")).ends(9000)
    first = f"{cloud.job.name}-0"
    cloud.script[1000] = lambda: cloud.phases.update({first: "SUSPENDED"})
    cloud.drive()
    assert cloud.calls == ["create", "create", "scp", "ssh", "scp", "ssh", "delete", *ALL, "delete", "delete"]


def test_a_slice_of_a_sweep_with_nothing_left_to_do_is_given_back_before_the_others():
    cloud = Cloud(job("2*v6e:2x2", "sweep")).ends(9000)
    cloud.script[1000] = cloud.set(finished=("0-0",))
    cloud.script[2000] = lambda: cloud.notes.append(f"then there were {sorted(cloud.phases)}")
    cloud.drive()
    assert f"then there were ['{cloud.job.name}-1']" in cloud.notes and cloud.calls.count("delete") == 2
