"""The target `local`: when its processes are started again."""

import pytest

from lm.launch import local
from lm.launch.job import Job


class Process:
    """A process that ended with a code after some seconds of a clock that the test sets."""

    def __init__(self, code):
        self.code = code

    def wait(self):
        return self.code

    def poll(self):
        return self.code

    def send_signal(self, number):
        self.code = 42


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a job whose attempts take `seconds` and end with `codes`; return the exit code and the pauses before restarts."""

    def run(codes, seconds=1.0):
        now, left, pauses = [0.0], list(codes), []

        def start(job):
            now[0] += seconds
            return [Process(left.pop(0))]

        def sleep(pause):
            now[0] += pause
            pauses[-1] += pause

        monkeypatch.setattr(local, "_start", start)
        monkeypatch.setattr(local, "_POLL_SECONDS", 0.5)
        monkeypatch.setattr(local.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(local.time, "sleep", sleep)
        job = Job(("train",), "local", "cpu:1", str(tmp_path), name="job")
        return local.run(job, lambda text: pauses.append(0.0)), pauses

    return run


def test_quick_failures_wait_ever_longer(run):
    assert run([42] * 8 + [0]) == (0, [0.0, 1.0, 2.0, 5.0, 15.0, 60.0, 60.0, 60.0])


def test_a_long_attempt_is_started_again_at_once(run):
    assert run([42, 42, 42, 0], seconds=3600.0) == (0, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("code", [1, 2])
def test_what_is_wrong_is_not_started_again(run, code):
    assert run([code]) == (code, [])
