"""When a run saves: regularly, again after a failure, and on all hosts after the same step."""

import pytest

from lm.errors import LmError
from lm.train import saving
from lm.train.saving import Saving


class Fails:
    """Checkpoints whose background saves of some steps fail, each known two steps later."""

    def __init__(self, *steps: int):
        self.failing, self.saved, self.now = set(steps), [], 0

    def failure(self):
        self.now += 1
        return "no space" if self.now - 2 in self.failing & set(self.saved) else None

    def save(self, step, items, **json):
        self.saved.append(step)

    def finish(self):
        if self.saved[-1] in self.failing:
            raise LmError(f"no space at {self.saved[-1]}")


class NextStep:
    """`hosts.Agreement` among several: what one wished in a step, all know in the next."""

    wishes: list = []  # noqa: RUF012 (of all hosts, by step)

    def __init__(self, mesh):
        self._asked = 0

    def __call__(self, wish, outputs):
        if len(self.wishes) <= self._asked:
            self.wishes.append([])
        self.wishes[self._asked].append(wish)
        self._asked += 1
        before = self.wishes[self._asked - 2] if self._asked > 1 else []
        return next(filter(None, before), None)


def run(savings, steps):
    for step in range(1, steps + 1):
        due = [each.is_due(step, None) for each in savings]  # all hosts ask before any saves
        for each, now in zip(savings, due, strict=True):
            if now:
                each(step, {})


@pytest.fixture
def notes():
    return []


def test_a_save_is_done_again_in_the_step_in_which_its_failure_is_known(notes):
    checkpoints = Fails(8)
    run([Saving(checkpoints, None, 8, notes.append)], 20)
    assert checkpoints.saved == [8, 10, 16]
    assert notes == ["no space; trying again"]


def test_after_three_tries_the_next_is_the_regular_one(notes):
    checkpoints = Fails(8, 10, 12, 14)
    run([Saving(checkpoints, None, 8, notes.append)], 23)
    assert checkpoints.saved == [8, 10, 12, 14, 16]
    assert notes[:3] == ["no space; trying again"] * 3
    assert notes[3:] == ["no space; trying again"], "the fourth is known at step 16, which saves anyway"


def test_all_hosts_save_again_after_the_same_step_though_one_failed(notes, monkeypatch):
    monkeypatch.setattr(saving.hosts, "Agreement", NextStep)
    monkeypatch.setattr(NextStep, "wishes", [])
    one, other = Fails(), Fails(8)
    run([Saving(each, None, 8, notes.append) for each in (one, other)], 20)
    assert one.saved == other.saved == [8, 11, 16]
    assert notes == ["no space; trying again"]


def test_a_last_save_must_succeed(notes, monkeypatch):
    monkeypatch.setattr(saving, "PAUSE_SECONDS", 0.0)
    checkpoints = Fails(5)
    with pytest.raises(LmError, match="no space at 5"):
        Saving(checkpoints, None, 8, notes.append)(5, {}, must_succeed=True)
    assert checkpoints.saved == [5] * 4
    assert notes == ["no space at 5; trying again"] * 3
