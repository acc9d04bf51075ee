"""What became of a run's wall time: lost work is found whatever the restarts did, and all parts are the whole."""

import re

import pytest

from lm.report.goodput import MOST_ATTEMPTS, breakdown, section
from lm.train.timeline import PHASES


def record(attempt, time, step=None, training=0.0, run=None, **more):
    """A record of an attempt whose time was `init` but for `training` seconds of steps."""
    seconds = dict.fromkeys(PHASES, 0.0) | {"init": time - attempt - training, "step": training}
    return {"attempt": attempt, "time": time, "step": step, "seconds": seconds, **more} | ({"run": run} if run else {})


def trained(attempt, first, last, end="done", run="a", every=10):
    """An attempt with a record every ten steps: 10 s of init, then a second a step."""
    out = [record(attempt, attempt, run=run), record(attempt, attempt + 10, first)]
    for step in [*range(first + every, last, every), last]:
        out.append(record(attempt, attempt + 10 + step - first, step, step - first))
    return out if end is None else [*out, {**out[-1], "end": end}]


def test_a_folder_without_a_record_has_no_breakdown():
    assert breakdown([]) is None


def test_an_undisturbed_run_loses_nothing():
    found = breakdown(trained(0.0, 0, 90))
    assert (found.wall, found.goodput) == (100.0, 0.9)
    nothing = dict.fromkeys(("lost", "compile", "data_wait", "evaluation", "save", "idle"), 0.0)
    assert found.seconds == nothing | {"kept": 90.0, "init": 10.0}


@pytest.mark.parametrize(("resumed", "lost"), [(50, 0), (40, 10), (37, 13), (0, 50)])
def test_what_was_trained_after_the_step_that_the_next_attempt_began_at_is_lost(resumed, lost):
    found = breakdown([*trained(0.0, 0, 50, end=None), *trained(100.0, resumed, 90)])
    assert found.seconds["lost"] == pytest.approx(lost) and found.attempts[0].lost_steps == lost
    assert found.seconds["kept"] == pytest.approx(90)
    assert found.seconds["idle"] == pytest.approx(40)
    assert sum(found.seconds.values()) == pytest.approx(found.wall)


def test_an_attempt_may_lose_the_work_of_several_before_it():
    """The newest checkpoints were damaged."""
    records = [*trained(0.0, 0, 30, "preempted"), *trained(50.0, 30, 60, "preempted"), *trained(100.0, 20, 90)]
    found = breakdown(records)
    assert [a.lost_steps for a in found.attempts] == [10, 30, 0]
    assert [a.lost for a in found.attempts] == pytest.approx([10, 30, 0])
    assert found.seconds["kept"] == pytest.approx(90)


def test_work_is_lost_once_however_often_it_is_trained_again():
    records = [*trained(0.0, 0, 30, None), *trained(50.0, 10, 40, None), *trained(100.0, 10, 50)]
    found = breakdown(records)
    assert [a.lost_steps for a in found.attempts] == [20, 30, 0]
    assert found.seconds["kept"] == pytest.approx(50)


def test_an_attempt_that_never_reached_the_loop_takes_time_and_loses_no_work():
    killed = [record(60.0, 60.0, run="a"), record(60.0, 75.0)]
    found = breakdown([*trained(0.0, 0, 30, None), *killed, *trained(100.0, 30, 50)])
    assert found.seconds["lost"] == 0 and found.seconds["init"] == 35
    assert (found.attempts[1].first, found.attempts[1].ended) == (None, None)


def test_starting_a_finished_run_again_changes_nothing():
    records = trained(0.0, 0, 50)
    again = [record(9_000.0, 9_000.0, run="a"), record(9_000.0, 9_010.0, 50), record(9_000.0, 9_010.0, 50, end="done")]
    assert breakdown([*records, *again]) == breakdown(records)


def test_attempts_of_a_config_that_never_trained_a_step_here_do_not_count():
    failed = [record(0.0, 0.0, run="b"), record(0.0, 10.0, 0), record(0.0, 20.0, 0, end="failed", reason="memory")]
    assert breakdown([*failed, *trained(100.0, 0, 50)]) == breakdown(trained(100.0, 0, 50))


def test_an_attempt_whose_first_line_was_torn_counts():
    torn = trained(100.0, 50, 90)[1:]
    assert len(breakdown([*trained(0.0, 0, 50, None), *torn]).attempts) == 2
    assert len(breakdown([*trained(0.0, 0, 50, None)[1:], *trained(100.0, 50, 90)]).attempts) == 2


def test_a_clock_that_was_set_back_does_not_make_idle_time_negative():
    found = breakdown([*trained(1_000.0, 0, 50, None), *trained(500.0, 50, 90)])
    assert found.seconds["idle"] == 0
    assert found.goodput == pytest.approx(90 / 110)


def shown(found):
    return re.sub(r"<[^>]+>", " ", section(found))


def test_the_section_says_the_goodput_and_each_part_and_each_attempt():
    failed = [record(120.0, 120.0, run="a"), record(120.0, 130.0, end="failed", reason="no <space> left")]
    found = breakdown([*trained(0.0, 0, 50, None), *failed, *trained(150.0, 40, 90, None)])
    content = shown(found)
    assert "Goodput 42.9%: 1:30 of 3:30 in 3 attempts" in content
    assert re.search(r"lost work\s+10\.0 s\s+4\.8%", content)
    assert re.search(r"idle\s+1:20\s+38\.1%", content)
    assert "data wait" not in content  # there was none
    assert re.search(r"1970-01-01 00:00:00\s+1:00\s+0 to 50\s+10\s+killed", content)
    assert re.search(r"attempt 2 failed\s+no &lt;space&gt; left", content)
    assert re.search(r"1:00\s+40 to 90\s+running, or killed", content)


def test_the_bar_holds_all_of_the_time():
    content = section(breakdown([*trained(0.0, 0, 50, None), *trained(100.0, 40, 90)]))
    bar = content[content.index('class="bar"') : content.index("</div>")]
    assert sum(map(float, re.findall(r"width:([\d.]+)%", bar))) == pytest.approx(100, abs=0.01)


def test_many_attempts_are_folded_and_cut():
    records = [line for n in range(150) for line in trained(100.0 * n, n, n + 1, "preempted")]
    content = section(breakdown(records))
    assert f"Attempts (150, the last {MOST_ATTEMPTS})" in content
    assert content.count("<tr>") == MOST_ATTEMPTS + 1 + 4  # two heads, and kept, init, idle
    assert len(content) < 150_000


def test_an_attempt_of_no_length_has_a_section():
    assert "Goodput 0.0%" in shown(breakdown([record(5.0, 5.0, run="a")]))
