"""Saves that fail while a run goes on: one line each, and the run loses nothing that it could keep."""

import itertools
import json

import pytest

from lm.checkpoint.layout import finished_steps, unfinished
from lm.checkpoint.store import Checkpoints
from lm.errors import Preempted
from lm.train.interrupts import Interrupts
from tests.checkpoint.common import FullDisk, names
from tests.commands.runs import records

pytestmark = pytest.mark.slow  # each trains a model of its own


@pytest.fixture
def full_disk(monkeypatch):
    """`full_disk(2, 3)`: the files of the second and third save of the run cannot be written."""

    def fill(*which: int):
        count, save = itertools.count(1), Checkpoints.save

        def save_on_full_disk(self, *args, **kwargs):
            if next(count) in which:
                self.wait()  # for the one before, which has room
                with FullDisk():
                    save(self, *args, **kwargs)
                    while self._writer._orbax._async_manager._thread.is_alive():
                        pass
            else:
                save(self, *args, **kwargs)

        monkeypatch.setattr(Checkpoints, "save", save_on_full_disk)
        monkeypatch.setattr("lm.train.saving.PAUSE_SECONDS", 0.0)

    return fill


def lines_about(done, what: str) -> list[str]:
    return [line for line in done.err.splitlines() if what in line]


def figures(workdir, kind="train"):
    return [(r["step"], r["loss"]) for r in records(workdir, kind)]


def test_a_background_save_that_failed_is_told_of_at_once_and_done_again(train, finished, tmp_path, full_disk):
    full_disk(1)
    done = train(tmp_path / "run", "--config.checkpoint.keep=9")
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert len(lines_about(done, "cannot write checkpoint")) == 1
    line = lines_about(done, 'checkpoints/8"')[0]
    assert "File too large" in line and "there is none before it" in line and line.endswith("; trying again")
    assert finished_steps(str(tmp_path / "run" / "checkpoints")) == [9, 16, 20], "of the step after, without delay"
    assert figures(tmp_path / "run") == figures(finished)


def test_after_some_tries_training_goes_on_until_the_next_regular_save(train, finished, tmp_path, full_disk):
    full_disk(1, 2, 3, 4)
    done = train(tmp_path / "run", "--config.checkpoint.keep=9")
    assert done.code == 0, done.err
    lines = lines_about(done, "cannot write checkpoint")
    assert [line.rsplit("; ", 1)[1] for line in lines] == [
        "trying again",
        "trying again",
        "trying again",
        "training goes on without, until the next save at step 16",
    ]
    assert finished_steps(str(tmp_path / "run" / "checkpoints")) == [16, 20]
    assert figures(tmp_path / "run") == figures(finished)


def test_a_last_save_that_fails_ends_the_run_with_one_line(train, tmp_path, full_disk):
    full_disk(3, 4, 5, 6)
    done = train(tmp_path / "run")
    assert done.code == 1 and "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("lm: cannot write checkpoint") and 'checkpoints/20"' in last
    assert "the newest whole one is of step 16" in last
    assert len(lines_about(done, "trying again")) == 3
    assert finished_steps(str(tmp_path / "run" / "checkpoints")) == [8, 16]
    assert unfinished(str(tmp_path / "run" / "checkpoints")) == []


def test_a_last_save_that_succeeds_in_the_end_is_a_success(train, tmp_path, full_disk):
    full_disk(3, 4, 5)
    done = train(tmp_path / "run")
    assert done.code == 0, done.err
    assert finished_steps(str(tmp_path / "run" / "checkpoints")) == [16, 20]


def test_a_folder_that_cannot_be_written_is_refused_before_training(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    done = train(tmp_path / "run")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith(f'lm: cannot write in "{tmp_path / "run" / "checkpoints"}"')
    assert records(tmp_path / "run") == []


def test_a_signal_while_a_save_is_under_way_keeps_that_one_and_saves_the_step_it_stops_at(train, tmp_path, monkeypatch):
    import threading

    from orbax.checkpoint._src.checkpointers import async_checkpointer

    publish, stopping, under_way = async_checkpointer._on_commit_callback, threading.Event(), []
    save = Checkpoints.save

    def publish_late(*args, **kwargs):
        stopping.wait(30)
        publish(*args, **kwargs)

    def save_and_look(self, step, *args, **kwargs):
        if step > 8:
            under_way.append(self.steps() == [])
            stopping.set()
        save(self, step, *args, **kwargs)
        if step == 8:
            interrupts[0].requested = "SIGTERM"

    interrupts = []
    installed = Interrupts.installed
    monkeypatch.setattr(Interrupts, "installed", lambda self: (interrupts.append(self), installed(self))[1])
    monkeypatch.setattr(async_checkpointer, "_on_commit_callback", publish_late)
    monkeypatch.setattr(Checkpoints, "save", save_and_look)
    done = train(tmp_path / "run")
    assert done.code == Preempted.exit_code, done.err
    assert "stopped by SIGTERM at step 9, saved" in done.err.splitlines()[-1]
    assert under_way == [True], "the save of step 8 had not ended when that of step 9 came"
    assert names(tmp_path / "run" / "checkpoints") == {"8", "9"}


def test_the_best_checkpoint_by_its_validation_stays_and_is_found(train, lm, tmp_path):
    every = ("--config.eval.every_steps=2", "--config.checkpoint.every_steps=2", "--config.optimizer.num_steps=10")
    rate = "--config.optimizer.learning_rate=3.0"  # so that the last step is not the best
    done = train(tmp_path / "run", *every, rate, "--config.checkpoint.keep=1", "--config.checkpoint.keep_best=1")
    assert done.code == 0, done.err
    evals = {r["step"]: r["bits_per_byte"] for r in records(tmp_path / "run", "eval")}
    best = min(evals, key=evals.get)
    assert finished_steps(str(tmp_path / "run" / "checkpoints")) == sorted({best, 10})
    inspected = lm("inspect", tmp_path / "run", "--step", "best", "--json")
    assert json.loads(inspected.out)["step"] == best
