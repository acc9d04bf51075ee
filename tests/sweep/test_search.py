"""A search's trials: what is proposed, who has which, what a worker leaves that is gone, and what the folder says."""

import contextlib
import json
import math
import os
import subprocess
import sys

import pytest

from lm.errors import ConfigError, DamagedFileError, UsageError
from lm.sweep.algebra import Search, Uniform
from lm.sweep.search import MOST_INTERRUPTIONS, is_search, read_search, write_search
from lm.sweep.search_results import read_search_results
from tests.sweep.searches import SPACE, STEPS, open_search, plan_of, search, train


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "search")


def test_the_space_is_checked_when_it_is_written():
    with pytest.raises(ConfigError, match="space"):
        Search("tiny.py", {"optimizer.b2": (0.9, 0.99)})
    with pytest.raises(ConfigError, match="trials=0"):
        Search("tiny.py", SPACE, trials=0)


def test_the_plan_is_read_as_it_was_written_and_another_search_is_refused(folder):
    assert not is_search(folder)
    plan = plan_of()
    write_search(folder, plan)
    assert read_search(folder).space["optimizer.b2"] == SPACE["optimizer.b2"]
    write_search(folder, plan_of(trials=50))  # more of the same
    assert read_search(folder).trials == 50
    for other in ({"kind": "random"}, {"seed": 1}, {"space": {"optimizer.b2": Uniform(0.9, 0.99)}}):
        with pytest.raises(ConfigError, match=f"another search \\({next(iter(other))} differ\\)"):
            write_search(folder, plan_of(**other))
    with pytest.raises(UsageError, match="journal, which needs a local or network disk"):
        write_search("gs://bucket/search", plan)
    with open(f"{folder}/search.json", "w") as file:
        file.write("{")
    with pytest.raises(DamagedFileError, match="damaged"):
        read_search(folder)


def test_without_optuna_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install -e .\.\[sweep\]"):
        open_search(folder)


@pytest.mark.peer
def test_values_are_those_of_the_space_and_rounded_to_what_people_type(folder):
    for trial in search(open_search(folder), 12):
        own = trial.overrides
        assert list(own) == list(SPACE)
        assert 1e-4 <= own["optimizer.learning_rate"] <= 1 and len(repr(own["optimizer.learning_rate"])) <= 10
        assert isinstance(own["optimizer.warmup_steps"], int) and 0 <= own["optimizer.warmup_steps"] <= 20
        assert own["model.activation"] in ("gelu", "swiglu") and own["data.path"] in (("a",), ("b", "c"))


@pytest.mark.peer
def test_a_search_finds_the_valley_and_ends_what_is_behind(folder):
    search(open_search(folder), 30)
    results = read_search_results(folder)
    assert 3e-3 < results.best.overrides["optimizer.learning_rate"] < 3e-2
    assert len(results.of("pruned")) >= 8 and results.steps_trained < 0.8 * 30 * STEPS
    assert next(iter(results.importance)) == "optimizer.learning_rate"
    assert sum(results.importance.values()) == pytest.approx(1)
    ranked = results.ranked()
    assert [t.status for t in ranked] == sorted((t.status for t in ranked), key=["done", "pruned"].index)


@pytest.mark.peer
def test_random_search_ends_nothing_early(folder):
    search(open_search(folder, kind="random"), 20)
    assert len(read_search_results(folder).of("done")) == 20


@pytest.mark.peer
def test_what_is_proposed_does_not_depend_on_how_often_the_search_was_stopped(tmp_path):
    whole = search(open_search(str(tmp_path / "whole")), 16)
    parts = [search(open_search(str(tmp_path / "parts")), most) for most in (3, 11, 16)]
    assert [t.overrides for part in parts for t in part] == [t.overrides for t in whole]
    other = search(open_search(str(tmp_path / "other"), seed=1), 2)
    assert other[0].overrides != whole[0].overrides


@pytest.mark.peer
def test_two_workers_share_the_trials_and_none_is_begun_beyond_the_number_wanted(folder):
    one, two = open_search(folder), open_search(folder)
    with one.next(3) as a, two.next(3) as b, one.next(3) as c:
        assert {a.number, b.number, c.number} == {0, 1, 2} and a.overrides != b.overrides
        with two.next(3) as none:
            assert none is None and two.finished() == 0
        for trial in (a, b, c):
            train(one, trial, f"{trial.number:012x}")
    assert two.finished() == 3


@pytest.mark.peer
def test_a_trial_that_a_worker_lets_go_is_the_next_one_with_what_it_had(folder):
    trials = open_search(folder)
    with contextlib.suppress(KeyboardInterrupt), trials.next(2) as first:
        first.is_behind(3, 2.5)
        raise KeyboardInterrupt
    with open_search(folder).next(2) as again:
        assert (again.number, again.overrides) == (0, first.overrides)
        assert not again.is_behind(3, 2.5)  # has been reported; a second time is no error
        again.is_behind(6, 2.4)
    assert trials.study.trials[0].intermediate_values == {3: 2.5, 6: 2.4}


KILLED = """
import os, sys
from lm.sweep.search import Trials, read_search

folder = sys.argv[1]
with Trials(folder, read_search(folder)).next(5) as trial:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.peer
def test_a_killed_workers_trial_is_taken_up_again_but_not_for_ever(folder):
    trials = open_search(folder)
    for death in range(MOST_INTERRUPTIONS):
        child = subprocess.Popen([sys.executable, "-c", KILLED, folder], env=os.environ | {"PYTHONPATH": os.getcwd()})
        assert child.wait() == -9
        assert [trial.number for trial in trials.left_by(child.pid)] == [0], death
        assert not trials.left_by(child.pid + 1)
    with trials.next(5) as trial:
        assert trial.number == 1
    (failed,) = read_search_results(folder).of("failed")
    assert failed.number == 0 and failed.failure == "its process was ended 3 times"


@pytest.mark.peer
def test_a_trial_that_failed_does_not_count_as_a_result(folder):
    trials = open_search(folder)
    with trials.next(3) as trial:
        trials.finish(trial.number, "failed", failure="loss is nan at step 3")
    search(trials, 3)
    results = read_search_results(folder)
    assert [t.status for t in results.ranked()][-1] == "failed" and results.best.number != 0
    assert results.trials[0].failure == "loss is nan at step 3" and math.isnan(results.trials[0].value)
    trials.derive()
    with open(f"{folder}/ledger.jsonl") as file:
        assert [json.loads(line)["variant"] for line in file] == ["trial 1", "trial 2"]
