"""Stages: done tasks are not done again, a failed one is named and the rest finished, a killed worker is replaced."""

import os

import pytest

from lm.corpus.local import LocalExecutor
from lm.corpus.stage import Stages
from lm.corpus.task import Task
from lm.errors import LmError
from tests.corpus import tasks


def task(folder, name, function=tasks.double, **arguments):
    return Task(str(folder / name), function, {"text": name, **arguments}, size=10)


def test_a_task_that_is_done_is_not_done_again_until_its_arguments_or_inputs_change(tmp_path):
    stages = Stages(LocalExecutor(1))
    assert stages.run("double", [task(tmp_path, "a"), task(tmp_path, "bb")]) == [{"characters": 2}, {"characters": 4}]
    before = os.stat(tmp_path / "a.txt").st_mtime_ns
    stages.run("double", [task(tmp_path, "a"), task(tmp_path, "bb")])
    assert os.stat(tmp_path / "a.txt").st_mtime_ns == before
    stages.run("double", [task(tmp_path, "a", text="ccc")])
    assert (tmp_path / "a.txt").read_text() == "cccccc"
    first = Task(str(tmp_path / "a"), tasks.double, {"text": "a"}, inputs=("one",))
    assert first.key != Task(first.out, first.function, first.arguments, inputs=("two",)).key


def test_failed_tasks_are_named_the_rest_is_done_and_the_next_start_does_only_what_is_left(tmp_path):
    bad = [task(tmp_path, "refused", tasks.refuse, label="dump 7"), task(tmp_path, "dead", tasks.die)]
    bad.append(task(tmp_path, "wrong", tasks.stumble))
    good = [task(tmp_path, f"good{number}") for number in range(4)]
    with pytest.raises(LmError) as error:
        Stages(LocalExecutor(2)).run("double", [*bad, *good])
    text = str(error.value)
    assert "dump 7: the file is damaged." in text and "dead: its process was ended by SIGKILL" in text
    assert "wrong: ValueError: a bug (tasks.py:" in text and "The other 4 of 7 tasks are done and kept." in text
    assert "\n" not in text and all((tmp_path / f"good{number}.txt").exists() for number in range(4))


def test_a_killed_workers_task_fails_and_succeeds_at_the_next_start(tmp_path):
    once = [task(tmp_path, "once", tasks.die_once), task(tmp_path, "other")]
    with pytest.raises(LmError, match="SIGKILL"):
        Stages(LocalExecutor(1)).run("stage", once)
    assert Stages(LocalExecutor(1)).run("stage", once) == [{}, {"characters": 10}]


def test_progress_counts_tasks_and_bytes_up_to_the_end(tmp_path):
    seen = []
    stages = Stages(LocalExecutor(1), lambda *at: seen.append(at))
    stages.run("double", [task(tmp_path, "a"), task(tmp_path, "b")])
    assert seen[0] == ("double", (0, 2), (0, 20)) and seen[-1] == ("double", (2, 2), (20, 20))


def test_what_another_config_half_overwrote_is_not_trusted_again(tmp_path):
    stages = Stages(LocalExecutor(1))
    first = Task(str(tmp_path / "a"), tasks.double, {"text": "a"})
    stages.run("double", [first])
    with pytest.raises(LmError):  # overwrites the files, and dies
        stages.run("double", [Task(first.out, tasks.spoil, {"text": "b"})])
    stages.run("double", [first])
    assert (tmp_path / "a.txt").read_text() == "aa"
