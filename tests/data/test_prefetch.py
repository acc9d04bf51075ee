"""Prefetching: the same items, errors where they belong, no hang."""

import subprocess
import sys
import threading
import time

import pytest

from lm.data.prefetch import Prefetcher


def test_items_come_in_order():
    with Prefetcher(lambda step: step * step, 3, 8, depth=2) as prefetcher:
        assert list(prefetcher) == [(step, step * step) for step in range(3, 8)]


def test_items_are_built_ahead_but_not_more_than_depth():
    built = []
    with Prefetcher(built.append, 0, 100, depth=3) as prefetcher:
        iterator = iter(prefetcher)
        next(iterator)
        deadline = time.monotonic() + 5
        while len(built) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(built) == 5  # one taken, three queued, one waiting to be queued


def test_an_error_is_raised_at_its_step():
    def fail_at_two(step):
        if step == 2:
            raise ValueError("step two")
        return step

    seen = []
    with pytest.raises(ValueError, match="step two"):
        for step, _ in Prefetcher(fail_at_two, 0, 5):
            seen.append(step)
    assert seen == [0, 1]


def test_closing_stops_the_thread_and_may_be_repeated():
    before = threading.active_count()
    prefetcher = Prefetcher(lambda step: step, 0, 10**9)
    next(iter(prefetcher))
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == before
    assert list(prefetcher) == []


def test_an_abandoned_prefetcher_does_not_keep_the_process_alive():
    code = "from lm.data.prefetch import Prefetcher; next(iter(Prefetcher(lambda step: step, 0, 10**9)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
