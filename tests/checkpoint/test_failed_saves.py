"""Saves that fail: said at once, never believed, without a trace, and the next one is as if nothing had been."""

import os
import shutil
import types

import pytest

from lm.checkpoint.layout import finished_steps
from lm.checkpoint.store import Checkpoints
from lm.errors import LmError
from tests.checkpoint.common import FullDisk, failure, names, save, state, targets, written


@pytest.fixture
def lines():
    return []


@pytest.fixture
def checkpoints(tmp_path, lines):
    checkpoints = Checkpoints(str(tmp_path), keep=1, warn=lines.append)
    save(checkpoints, 10)
    checkpoints.wait()
    return checkpoints


def test_a_background_save_on_a_full_disk_is_told_of_once_and_leaves_nothing(checkpoints, tmp_path, capfd):
    assert checkpoints.failure() is None
    with FullDisk():
        save(checkpoints, 20)
        problem = failure(checkpoints)
    assert f'cannot write checkpoint "{tmp_path / "20"}"' in problem and "File too large" in problem
    assert "the newest whole one is of step 10" in problem and "\n" not in problem
    assert checkpoints.failure() is None
    assert checkpoints.steps() == [10]
    save(checkpoints, 21)
    checkpoints.close()
    assert names(tmp_path) == {"21"}
    assert capfd.readouterr().err == "", "Orbax's tracebacks are not the user's"


def test_a_failure_that_nobody_asked_about_is_raised_by_what_waits(checkpoints, tmp_path):
    for wait in (checkpoints.wait, checkpoints.finish, lambda: save(checkpoints, 22)):
        with FullDisk():
            save(checkpoints, 20)
            while checkpoints._writer._orbax._async_manager._thread.is_alive():
                pass
        with pytest.raises(LmError, match='checkpoint ".*20".*File too large'):
            wait()
        assert checkpoints.steps() == [10]
    save(checkpoints, 20)
    checkpoints.close()
    assert names(tmp_path) == {"20"}


def no_answer(*_):
    raise LmError("cannot remove: no answer.")


def test_what_failed_is_told_of_though_the_store_does_not_let_it_be_removed(checkpoints, tmp_path, monkeypatch):
    with monkeypatch.context() as outage, FullDisk():
        outage.setattr("lm.checkpoint.store.unfinished", no_answer)
        save(checkpoints, 20)
        assert "File too large" in failure(checkpoints)
    save(checkpoints, 21)
    checkpoints.close()
    assert names(tmp_path) == {"21"}


def test_an_old_checkpoint_that_cannot_be_removed_does_not_spoil_the_new_one(checkpoints, tmp_path, lines, monkeypatch):
    with monkeypatch.context() as outage:
        outage.setattr(Checkpoints, "_remove", no_answer)
        save(checkpoints, 20)
        checkpoints.finish()
    assert checkpoints.steps() == [10, 20]
    assert len(lines) == 1 and "no answer" in lines[0]
    save(checkpoints, 30)
    checkpoints.close()
    assert names(tmp_path) == {"30"}


def disk(monkeypatch, free, per_checkpoint=0):
    """Let the disk have so many free bytes, and as many more as were removed."""
    removed = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **rest: (removed.append(path), rmtree(path, **rest)))
    usage = lambda _: types.SimpleNamespace(free=free + per_checkpoint * len(removed))  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    return removed


def test_a_save_without_room_is_refused_before_it_begins_and_the_last_good_one_stays(
    checkpoints, tmp_path, lines, monkeypatch
):
    disk(monkeypatch, free=1000, per_checkpoint=10**9)
    with pytest.raises(LmError, match=r"needs .* GB, and there are 1e-06 GB free"):
        save(checkpoints, 20)
    assert names(tmp_path) == {"10"} and lines == []


def test_room_is_made_by_what_the_new_checkpoint_replaces(tmp_path, lines, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), keep=2, warn=lines.append)
    for step in (10, 20):
        save(checkpoints, step)
    checkpoints.wait()
    removed = disk(monkeypatch, free=1000, per_checkpoint=10**9)
    save(checkpoints, 30)
    assert removed == [str(tmp_path / "10")]
    checkpoints.close()
    assert len(lines) == 1 and "to make room for the checkpoint of step 30" in lines[0]
    assert finished_steps(str(tmp_path)) == [20, 30]


def test_nothing_is_removed_for_room_before_one_is_known_to_be_good(tmp_path, monkeypatch):
    written(tmp_path, 10, 20, 30, keep=3)
    disk(monkeypatch, free=1000, per_checkpoint=10**9)
    with pytest.raises(LmError, match="GB free"):
        save(Checkpoints(str(tmp_path), keep=1), 40)
    assert finished_steps(str(tmp_path)) == [10, 20, 30]


def test_a_store_that_is_read_only_is_one_line_and_can_still_be_read(checkpoints, tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal comes from the call that would be refused."""

    def refused(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, "makedirs", refused)
    reader = Checkpoints(str(tmp_path))
    for write in (lambda: save(checkpoints, 20), Checkpoints(str(tmp_path)).start_writing):
        with pytest.raises(LmError, match=rf'cannot write in "{tmp_path}": Read-only file system') as caught:
            write()
        assert "\n" not in str(caught.value)
    assert reader.restore(targets(state())).step == 10
