"""When a job that ended is started again."""

import pytest

from lm.launch.policy import Attempt, can_restart, why_not


def attempts(*ends, progress=0):
    """Return attempts that ended with these codes (None: lost), none of which moved the job on."""
    return [
        Attempt(began=10.0 * n, progress=progress, ended=None if code is None else 10.0 * n + 5, code=code)
        for n, code in enumerate(ends)
    ]


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (42, True), (130, False), (137, True)])
def test_only_what_was_preempted_or_killed_may_start_again(code, again):
    assert can_restart(code) == again


def test_a_preemption_is_no_crash_however_often_it_comes():
    assert why_not(attempts(*[42] * 50), progress=0, max_restarts=100) is None


def test_three_crashes_in_a_row_without_progress_are_a_loop():
    assert why_not(attempts(137, 139), progress=0, max_restarts=100) is None
    reason = why_not(attempts(137, None, 139), progress=0, max_restarts=100)
    assert "3 times in a row (SIGKILL, lost, SIGSEGV) without any progress" in reason


def test_crashes_with_progress_between_them_are_none():
    assert why_not(attempts(137, 137, 137), progress=20, max_restarts=100) is None


def test_a_preemption_between_crashes_breaks_the_row():
    assert why_not(attempts(137, 42, 137, 137), progress=0, max_restarts=100) is None


def test_restarts_have_a_limit():
    assert why_not(attempts(42, 42), progress=5, max_restarts=2) is None
    assert "--max-restarts is 2" in why_not(attempts(42, 42, 42), progress=5, max_restarts=2)
