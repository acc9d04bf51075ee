"""The record of where the time goes: phases that add up, whatever ends an attempt, and what a restart trains again."""

import json
import os
import time

import pytest

from lm.errors import LmError, Preempted
from lm.report.goodput import breakdown
from lm.storage import LineLog
from lm.train.timeline import PHASES, Rates, Timeline, process_start, read_timeline
from tests.commands.runs import finish, records, start, write_config, write_text


class Clock:
    """Monotonic and wall clock of one machine, which only `pass_` moves."""

    def __init__(self):
        self.now = 1_000.0

    def pass_(self, seconds):
        self.now += seconds

    def timeline(self, start=None):
        return Timeline(start, monotonic=lambda: self.now - 900, wall=lambda: self.now)


@pytest.fixture
def clock():
    return Clock()


def fail(line):
    raise AssertionError(line)


def attempt(clock, workdir, first, last, *, save_every=4, error=None):
    """Train from one step to another as the loop does: 5 s until the loop, 3 of compilation, 1 for data, 2 for a step.

    `error`: raised after the last step.
    """
    timeline = clock.timeline()
    with timeline.recorded(str(workdir), "run", fail):
        _loop(clock, timeline, first, last, save_every)
        if error:
            raise error


def killed_attempt(clock, workdir, first, last):
    """The same, killed two seconds after the last step's record."""
    path, left = workdir / "timeline.jsonl", []
    timeline = clock.timeline()
    with timeline.recorded(str(workdir), "run", fail):
        _loop(clock, timeline, first, last, 4)
        left.append(path.read_bytes())
    path.write_bytes(left[0])
    clock.pass_(2)


def _loop(clock, timeline, first, last, save_every):
    clock.pass_(5)
    timeline.step = first
    timeline.write()

    def batches():
        for step in range(first, last):
            clock.pass_(1)
            yield step

    for step in timeline.steps(batches()):
        if step == first:
            with timeline.during("compile"):
                clock.pass_(3)
        clock.pass_(2)
        timeline.step = step + 1
        timeline.write_if_due()
        if (step + 1) % save_every == 0:
            with timeline.during("save"):
                timeline.write()
                clock.pass_(0.5)


def test_the_phases_of_an_attempt_add_up_to_its_wall_time(clock, tmp_path):
    attempt(clock, tmp_path, 0, 10)
    found = read_timeline(str(tmp_path))
    for record in found:
        assert sum(record["seconds"].values()) == pytest.approx(record["time"] - record["attempt"])
    last = found[-1]
    expected = {"init": 5, "compile": 3, "data_wait": 10, "step": 20, "evaluation": 0, "save": 1}
    assert last["seconds"] == expected and list(last["seconds"]) == list(PHASES)
    assert (last["step"], last["end"]) == (10, "done")
    assert {record["attempt"] for record in found} == {1_000.0}


def test_time_before_the_timeline_was_made_is_its_start(clock, tmp_path):
    start = clock.now - 900
    clock.pass_(7)
    timeline = clock.timeline(start)
    with timeline.recorded(str(tmp_path), "run", fail):
        pass
    (record, _) = read_timeline(str(tmp_path))
    assert record["attempt"] == 1_000.0 and record["seconds"]["init"] == 7.0


def test_work_after_the_checkpoint_that_a_killed_attempt_left_is_lost_and_the_pause_is_idle(clock, tmp_path):
    killed_attempt(clock, tmp_path, 0, 10)  # saved at 4 and 8
    clock.pass_(98)
    attempt(clock, tmp_path, 8, 12)
    found = breakdown(read_timeline(str(tmp_path)))
    killed, continued = found.attempts
    assert (killed.first, killed.last, killed.ended) == (0, 10, None)
    assert (killed.lost_steps, killed.lost) == (2, 4.0)
    assert (continued.first, continued.last, continued.ended, continued.lost_steps) == (8, 12, "done", 0)
    expected = {"kept": 24, "lost": 4, "init": 10, "compile": 6, "data_wait": 14, "evaluation": 0, "save": 1.5}
    assert found.seconds == pytest.approx(expected | {"idle": 100})  # and the two seconds after its last record
    assert found.wall == pytest.approx(sum(found.seconds.values())) == pytest.approx(clock.now - 1_000)
    assert found.goodput == pytest.approx(24 / found.wall)


def test_a_preempted_attempt_loses_nothing(clock, tmp_path):
    with pytest.raises(Preempted):
        attempt(clock, tmp_path, 0, 6, save_every=6, error=Preempted("stopped by SIGTERM"))
    attempt(clock, tmp_path, 6, 9)
    found = breakdown(read_timeline(str(tmp_path)))
    assert [a.ended for a in found.attempts] == ["preempted", "done"]
    assert found.seconds["lost"] == 0 and found.seconds["kept"] == 18


def test_an_attempt_that_fails_says_why(clock, tmp_path):
    with pytest.raises(LmError):
        attempt(clock, tmp_path, 0, 6, error=LmError("loss is nan\nat step 6"))
    last = read_timeline(str(tmp_path))[-1]
    assert (last["end"], last["reason"]) == ("failed", "loss is nan at step 6")


def test_steps_that_take_milliseconds_are_not_recorded_each(clock, tmp_path):
    timeline = clock.timeline()
    with timeline.recorded(str(tmp_path), "run", fail):
        for _ in range(1_000):
            clock.pass_(0.001)
            timeline.write_if_due()
    assert 10 <= len(read_timeline(str(tmp_path))) <= 12


def test_an_old_attempt_leaves_a_record_a_minute(clock, tmp_path):
    timeline = clock.timeline()
    with timeline.recorded(str(tmp_path), "run", fail):
        clock.pass_(1e6)
        timeline.write()
        before = len(read_timeline(str(tmp_path)))
        for _ in range(600):
            clock.pass_(1)
            timeline.write_if_due()
        assert len(read_timeline(str(tmp_path))) == before + 10


def test_on_an_object_store_a_part_is_written_a_minute_at_most_but_at_a_save_and_at_the_end(clock):
    workdir = "memory://test-timeline/run"
    timeline = clock.timeline()
    with timeline.recorded(workdir, "run", fail):
        for _ in range(150):
            clock.pass_(1)
            timeline.write_if_due()
        assert [record["time"] - 1_000 for record in read_timeline(workdir)] == [0, 60, 120]
        timeline.write()
        clock.pass_(1)
    assert [record["time"] - 1_000 for record in read_timeline(workdir)] == [0, 60, 120, 150, 151]


def test_a_line_that_a_kill_has_torn_costs_itself_alone(clock, tmp_path):
    attempt(clock, tmp_path, 0, 3)
    path = tmp_path / "timeline.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    attempt(clock, tmp_path, 0, 3)
    found = read_timeline(str(tmp_path))
    assert [record.get("run") for record in found].count("run") == 2
    assert [record.get("end") for record in found].count("done") == 1


def test_a_record_that_cannot_be_written_is_one_warning_and_comes_with_the_next(clock, tmp_path, monkeypatch):
    warnings, flush = [], LineLog.flush

    def full(self):
        raise LmError("cannot write: no space.")

    timeline = clock.timeline()
    with timeline.recorded(str(tmp_path), "run", warnings.append):
        monkeypatch.setattr(LineLog, "flush", full)
        timeline.write()
        timeline.write()
        monkeypatch.setattr(LineLog, "flush", flush)
    assert len(warnings) == 1 and "The run goes on" in warnings[0]
    assert len(read_timeline(str(tmp_path))) == 4


def test_rates_leave_out_compilation_and_evaluation_and_the_first_interval(clock):
    timeline = clock.timeline()
    clock.pass_(50)
    rates = Rates(timeline)
    results = []
    for step in timeline.steps(range(3)):
        with timeline.during("compile"):
            clock.pass_(10)
        clock.pass_(2)
        results.append(rates(100 * (step + 1), 1_000.0 * (step + 1)))
        with timeline.during("evaluation"):
            clock.pass_(20)
    assert results == [(None, None, 12), (50.0, 500.0, 44), (50.0, 500.0, 76)]


def test_a_process_knows_when_it_was_started():
    code = "import time; time.sleep(0.2); from lm.train.timeline import process_start; print(process_start())"
    before = time.monotonic()
    _, out, _ = finish(start(code=code))
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("no /proc")
    assert before - 0.02 <= float(out) <= time.monotonic() - 0.2  # the kernel's clock ticks every hundredth of a second
    assert process_start() < before


@pytest.mark.slow
def test_the_phases_of_a_killed_and_continued_run_add_up_to_its_wall_time(tmp_path):
    config = write_config(tmp_path / "tiny_words.py", write_text(tmp_path / "words.txt"), 400)
    workdir, pause = tmp_path / "run", 3.0
    command = ["train", f"--config={config}", f"--workdir={workdir}", "--json", "--config.checkpoint.every_steps=50"]

    began = time.time()
    process = start(*command)
    while max((r["step"] for r in records(workdir)), default=0) < 120:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    finish(process)
    killed = time.time()
    reached = max(r["step"] for r in records(workdir))
    time.sleep(pause)
    again = time.time()
    code, out, err = finish(start(*command))
    assert code == 0, err

    found = breakdown(read_timeline(str(workdir)))
    first, second = found.attempts
    for one, began_at in ((first, began), (second, again)):
        # From the outside: from before the process was started to the moment of the last record.
        assert sum(one.seconds.values()) == pytest.approx(one.end - began_at, rel=0.03)
        assert all(one.seconds[phase] > 0 for phase in PHASES if phase != "evaluation")
    assert found.wall == pytest.approx(second.end - began, rel=0.03)
    assert sum(found.seconds.values()) == pytest.approx(found.wall)
    assert again - killed <= found.seconds["idle"] <= again - first.end + 0.1
    assert first.ended is None and second.ended == "done"
    assert first.last <= reached and second.first in (50, 100, 150) and second.last == 400
    assert first.lost_steps == max(0, first.last - second.first)
    assert (found.seconds["lost"] > 0) == (first.lost_steps > 0)
    assert json.loads(out)["goodput"] == pytest.approx(found.goodput) and json.loads(out)["attempts"] == 2
    assert "goodput" in err
