"""The ledger: a result is written once, a run is worked on by one, and what a dead worker held is free at once."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import pytest

from lm.errors import DamagedFileError
from lm.sweep import ledger as ledger_module
from lm.sweep.ledger import Ledger


def test_of_many_that_claim_a_run_at_once_one_gets_it(tmp_path):
    start, got = threading.Barrier(8, timeout=60), []

    def work():
        ledger = Ledger(str(tmp_path))
        start.wait()
        with ledger.claimed("a") as is_mine:
            got.append(is_mine)
            start.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_a_claim_made_between_anothers_look_and_its_claim_stands(tmp_path, monkeypatch):
    first, second = Ledger(str(tmp_path)), Ledger(str(tmp_path))
    looked, claims = ledger_module.list_names, contextlib.ExitStack()

    def look_then_be_overtaken(path):
        names = looked(path)
        monkeypatch.setattr(ledger_module, "list_names", looked)
        assert claims.enter_context(second.claimed("a"))
        return names

    monkeypatch.setattr(ledger_module, "list_names", look_then_be_overtaken)
    with claims, first.claimed("a") as is_mine:
        assert not is_mine


def test_a_run_that_was_given_back_can_be_taken_again_and_one_that_is_finished_cannot(tmp_path):
    ledger = Ledger(str(tmp_path))
    for _ in range(2):
        with ledger.claimed("a") as is_mine:
            assert is_mine and ledger.is_held("a")
        assert not ledger.is_held("a")
    assert ledger.record({"id": "a", "loss": 1.0})
    with ledger.claimed("a") as is_mine:
        assert not is_mine


def test_the_first_result_stays(tmp_path):
    ledger = Ledger(str(tmp_path))
    assert ledger.record({"id": "a", "loss": 1.0})
    assert not ledger.record({"id": "a", "loss": 2.0})
    assert ledger.result("a")["loss"] == 1.0
    ledger.derive(["b", "a", "a"])
    assert [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == [
        {"id": "a", "loss": 1.0}
    ]
    ledger.forget("a")
    assert ledger.finished() == set()


CLAIM = """
import os, sys, time
from lm.sweep.ledger import Ledger
with Ledger(sys.argv[1]).claimed("a") as is_mine:
    print(is_mine, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_worker_held_is_free_at_once(tmp_path):
    worker = subprocess.Popen([sys.executable, "-c", CLAIM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "True\n"
    ledger = Ledger(str(tmp_path))
    assert ledger.is_held("a")
    worker.kill()
    worker.wait()
    assert not ledger.is_held("a")
    assert ledger.was_left_by("a", worker.pid) and not ledger.was_left_by("a", worker.pid + 1)
    with ledger.claimed("a") as is_mine:
        assert is_mine


def test_a_claim_of_another_machine_holds_until_its_lease_ends(tmp_path):
    ledger = Ledger(str(tmp_path))
    claim = {"host": "elsewhere", "pid": 1, "started": "1", "until": time.time() + 100}
    (tmp_path / "claims" / "a.0.json").write_text(json.dumps(claim))
    assert ledger.is_held("a")
    (tmp_path / "claims" / "a.0.json").write_text(json.dumps({**claim, "until": time.time() - 1}))
    assert not ledger.is_held("a")


def test_a_lease_is_renewed_while_its_worker_works(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "LEASE_SECONDS", 0.3)
    path = tmp_path / "claims" / "a.0.json"
    with Ledger(str(tmp_path)).claimed("a"):
        first = json.loads(path.read_text())["until"]
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["until"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(path.read_text())["until"] > first


def test_a_damaged_result_is_named(tmp_path):
    ledger = Ledger(str(tmp_path))
    (tmp_path / "results" / "a.json").write_text('{"id": "a", ')
    with pytest.raises(DamagedFileError, match=r"a\.json.* is damaged"):
        ledger.result("a")


def test_the_same_holds_on_an_object_store():
    folder = f"memory://sweep-{time.time_ns()}"
    ledger = Ledger(folder)
    with ledger.claimed("a") as first, Ledger(folder).claimed("a") as second:
        assert (first, second) == (True, False)
    assert ledger.record({"id": "a"}) and not ledger.record({"id": "a"})
    ledger.derive(["a"])
    ledger.forget("a")
    assert ledger.finished() == set()
