"""The process that trains for a sweep, as its parent sees it."""

import signal
import sys

from lm.commands.sweep_processes import run_worker
from lm.errors import Preempted


def _pretend(monkeypatch, tmp_path, script: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_worker_that_a_signal_reaches_before_it_listens_is_preempted(tmp_path, monkeypatch):
    # the parent is told to stop while its worker still imports; what it passes on kills the worker
    _pretend(monkeypatch, tmp_path, "sleep 0.3; kill -TERM $PPID; exec sleep 30")
    assert run_worker(["sweep"]).code == Preempted.exit_code


def test_a_worker_killed_by_somebody_else_is_not(tmp_path, monkeypatch):
    _pretend(monkeypatch, tmp_path, "kill -TERM $$; sleep 30")
    ended = run_worker(["sweep"])
    assert ended.code == -signal.SIGTERM and "SIGTERM" in ended.reason
