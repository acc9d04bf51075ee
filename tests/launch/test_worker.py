"""What runs on a job's hosts: exit codes, records, restarts, stopping."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lm.launch import worker
from lm.launch.records import Records
from lm.launch.worker import work
from tests.launch.common import job


def start(made) -> subprocess.Popen:
    """Start the job's worker as a process of its own, as a host does."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; from lm.launch.worker import work; sys.exit(work({made.folder!r}))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_a_verb_that_ends_well_is_done_with_its_output_in_the_log(tmp_path):
    made = job(tmp_path, 'print("hello"); print("progress", file=sys.stderr); save(7)')
    assert work(made.folder, os.environ) == 0
    store = Records(made.folder)
    state = store.state(made)
    assert (state.state, state.hosts[0].attempt, state.hosts[0].progress) == ("done", 1, 7)
    log = store.log("0-0").read()
    assert "== attempt 1 on host 0-0" in log[0]
    assert {"hello", "progress"} <= set(log)


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_fails_the_job_and_says_the_last_line(tmp_path, code):
    made = job(tmp_path, f'print("lm: config.modle: no such field", file=sys.stderr); sys.exit({code})')
    assert work(made.folder, os.environ) == code
    state = Records(made.folder).state(made)
    assert state.state == "failed"
    assert state.reason == f"host 0-0: exit code {code}: lm: config.modle: no such field"


@pytest.mark.parametrize("end", ["sys.exit(42)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_a_preemption_and_a_crash_may_be_started_again(tmp_path, end):
    made = job(tmp_path, end)
    assert work(made.folder, os.environ) == 42
    assert Records(made.folder).state(made).state == "restart"


def test_a_crash_loop_ends_after_three_starts_with_the_last_lines(tmp_path, capfd):
    made = job(tmp_path, 'print(f"start {number} segfaults"); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGSEGV)')
    assert [work(made.folder, os.environ) for _ in range(4)] == [42, 42, 42, 2]
    assert (pathlib.Path(made.workdir) / "starts").read_text().count("start") == 3
    state = Records(made.folder).state(made)
    assert state.state == "failed"
    assert "crashed 3 times in a row" in state.reason
    assert "start 2 segfaults" in capfd.readouterr().err.split("not started again")[0].rpartition("start 1")[2]


def test_crashes_that_leave_progress_go_on(tmp_path):
    made = job(tmp_path, "save(number + 1)\nif number < 4: os.kill(os.getpid(), signal.SIGKILL)")
    assert [work(made.folder, os.environ) for _ in range(5)] == [42, 42, 42, 42, 0]


def test_a_lost_host_counts_as_a_crash(tmp_path):
    made = job(tmp_path, "time.sleep(60)")
    for _ in range(3):
        process = start(made)
        starts = pathlib.Path(made.workdir) / "starts"
        before = starts.read_text().count("start") if starts.exists() else 0
        wait_for(lambda before=before, starts=starts: starts.exists() and starts.read_text().count("start") > before)
        process.kill()
        process.communicate()
    assert work(made.folder, os.environ) == 2
    assert "lost, lost, lost" in Records(made.folder).state(made).reason


def test_no_verb_outlives_its_worker(tmp_path):
    made = job(tmp_path, '(workdir / "pid").write_text(str(os.getpid())); time.sleep(60)')
    process, pid = start(made), pathlib.Path(made.workdir) / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.kill()
    process.communicate()
    wait_for(lambda: not pathlib.Path("/proc", pid.read_text(), "cmdline").exists() or _is_zombie(pid.read_text()))


def _is_zombie(pid: str) -> bool:
    return pathlib.Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"


SAVES = """
def handle(*_):
    save(9)
    sys.exit(42)
signal.signal(signal.SIGTERM, handle)
print("ready", flush=True)
time.sleep(60)
"""


def test_sigterm_reaches_the_verb_which_saves(tmp_path):
    made = job(tmp_path, SAVES)
    process, log = start(made), Records(made.folder).log("0-0")
    assert "ready" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 42
    assert (pathlib.Path(made.workdir) / "checkpoints" / "9").exists()
    assert "ready" in log.read()


def test_a_job_that_is_asked_to_stop_saves_and_is_not_started_again(tmp_path, monkeypatch):
    made = job(tmp_path, SAVES)
    process, store = start(made), Records(made.folder)
    assert "ready" in process.stdout.readline()
    store.ask_to_stop("asked to stop")
    process.communicate()
    assert process.returncode == 0  # so that no target starts it again
    assert store.state(made).state == "stopped"
    assert work(made.folder, os.environ) == 0
    assert (pathlib.Path(made.workdir) / "starts").read_text().count("start") == 1
    # Submitted again it goes on.
    store.submit(target="local")
    assert store.stop_reason() is None


def test_a_budget_that_is_used_up_stops_the_job(tmp_path):
    made = job(tmp_path, SAVES, budget_hours=1 / 3600)
    assert work(made.folder, os.environ) == 0
    state = Records(made.folder).state(made)
    assert (state.state, state.reason) == ("stopped", "the budget of 0.000277778 hours is used up")
    assert (pathlib.Path(made.workdir) / "checkpoints" / "9").exists()


def test_a_process_that_says_nothing_is_ended_and_may_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_KILL_SECONDS", 0.2)
    monkeypatch.setattr(worker, "_BEAT_SECONDS", {False: 0.1, True: 0.1})
    made = job(
        tmp_path,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
        silence_minutes=0.5 / 60,
        grace_seconds=0,
    )
    assert work(made.folder, os.environ) == 42
    assert "without a word" in Records(made.folder).state(made).reason


def test_the_liveness_file_is_kept_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_LIVENESS_FILE", str(tmp_path / "alive"))
    made = job(tmp_path, "pass")
    assert work(made.folder, os.environ) == 0
    assert float((tmp_path / "alive").read_text()) == pytest.approx(time.time(), abs=60)
