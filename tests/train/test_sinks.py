"""Every sink of a run behind one interface; what reports elsewhere may fail without harm."""

import dataclasses
import importlib.util
import sys
import types

import pytest

from lm.config import Config, LogConfig
from lm.errors import ConfigError, Preempted
from lm.train.metrics import check_sinks, open_sinks, read_metrics


def record(step, **more):
    return {"step": step, "loss": 1.0 / step, "mfu": None, **more}


class Collecting:
    """A sink of one's own."""

    opened = ()

    def __init__(self, config, workdir, first_step):
        self.config, self.workdir, self.first_step = config, workdir, first_step
        self.steps, self.calls = [], []
        Collecting.opened += (self,)

    def write(self, record):
        self.steps.append(record["step"])

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


class Failing(Collecting):
    """One whose server goes away at step 2."""

    def write(self, record):
        if record["step"] == 2:
            raise ConnectionError("no route\nto host")
        super().write(record)


class Stopping(Collecting):
    """One that a second Ctrl-C interrupts."""

    def write(self, record):
        raise Preempted("stopped at once by a second Ctrl-C")


def config_with(**log):
    return Config(log=LogConfig(**log))


def own(name):
    return config_with(sinks=(f"tests.train.test_sinks:{name}",))


def steps(workdir):
    return [r["step"] for r in read_metrics(str(workdir))]


def test_a_sink_of_ones_own_gets_every_record_from_the_first_step_on(tmp_path):
    config = own("Collecting")
    sink = open_sinks(config, str(tmp_path), first_step=3)
    for step in (3, 4):
        sink.write(record(step))
    sink.flush()
    sink.close()
    mine = Collecting.opened[-1]
    assert (mine.config, mine.workdir, mine.first_step) == (config, str(tmp_path), 3)
    assert (mine.steps, mine.calls) == ([3, 4], ["flush", "close"])
    assert steps(tmp_path) == [3, 4]
    assert len(list((tmp_path / "events").iterdir())) == 1


def test_a_sink_that_fails_is_told_of_once_and_costs_nobody_else_a_record(tmp_path):
    notes = []
    sink = open_sinks(own("Failing"), str(tmp_path), 1, note=notes.append)
    for step in (1, 2, 3):
        sink.write(record(step))
    sink.flush()
    sink.close()
    (note,) = notes
    assert "tests.train.test_sinks:Failing" in note and "no route to host" in note and "\n" not in note
    assert Collecting.opened[-1].steps == [1] and Collecting.opened[-1].calls == []
    assert steps(tmp_path) == [1, 2, 3]


def test_a_sink_does_not_swallow_the_wish_to_stop(tmp_path):
    sink = open_sinks(own("Stopping"), str(tmp_path), 1)
    with pytest.raises(Preempted):
        sink.write(record(1))


def test_the_records_that_will_come_again_are_cut(tmp_path):
    sink = open_sinks(config_with(tensorboard=False), str(tmp_path), 1)
    for step in (1, 2, 3):
        sink.write(record(step))
    sink.close()
    open_sinks(config_with(tensorboard=False), str(tmp_path), 3).close()
    assert steps(tmp_path) == [1, 2]
    open_sinks(config_with(tensorboard=False), str(tmp_path), 1).close()
    assert steps(tmp_path) == []
    assert not (tmp_path / "events").exists()


def test_a_missing_package_or_extension_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"config.log.wandb='my-project'.*pip install -e '.\[log\]'"):
        check_sinks(LogConfig(wandb="my-project"))
    with pytest.raises(ConfigError, match="config.log.sinks='no_such:Sink'"):
        open_sinks(config_with(sinks=("no_such:Sink",)), str(tmp_path), 1)
    assert not list(tmp_path.iterdir())


class Wandb(types.ModuleType):
    """Stands for wandb where a server is needed: a run that has reached step 6."""

    def __init__(self, **run):
        super().__init__("wandb", "")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.Settings, self.logged = dict, []
        self.setup = lambda settings: types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
        self.login = lambda **_: True
        self.run = types.SimpleNamespace(
            **{"resumed": True, "step": 7, "offline": False, "url": "https://wandb/run"} | run,
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda: self.logged.append("finished"),
        )

    def init(self, **options):
        self.options = options
        return self.run


@pytest.fixture
def wandb(monkeypatch):
    def install(**run):
        stand_in = Wandb(**run)
        monkeypatch.setitem(sys.modules, "wandb", stand_in)
        return stand_in

    return install


def test_a_resumed_wandb_run_gets_the_steps_it_lacks_and_no_others(tmp_path, wandb):
    there, notes = wandb(), []
    sink = open_sinks(config_with(wandb="p", tensorboard=False), str(tmp_path), 5, "f" * 64, notes.append)
    for step in (5, 6, 7, 8):
        sink.write(record(step))
        sink.write({"kind": "eval", "step": step, "split": "validation", "loss": 2.0})
    sink.close()
    train = [{"train/loss": 1.0 / step} for step in (7, 8)]
    assert there.logged == [
        *((7, train[0]), (7, {"validation/loss": 2.0})),
        *((8, train[1]), (8, {"validation/loss": 2.0})),
        "finished",
    ]
    assert there.options["resume"] == "allow" and there.options["project"] == "p"
    assert notes == ["Weights & Biases: https://wandb/run"]
    assert steps(tmp_path) == [5, 5, 6, 6, 7, 7, 8, 8]


def test_the_wandb_run_is_named_by_fingerprint_and_folder(tmp_path, wandb):
    there = wandb(resumed=False, step=0)

    def identity(workdir, fingerprint, first_step=1):
        open_sinks(config_with(wandb="p", tensorboard=False), str(workdir), first_step, fingerprint, list).close()
        return there.options["id"]

    first = identity(tmp_path / "a", "f")
    assert there.options["resume"] is None  # begun afresh: it takes the place of what was there
    assert identity(tmp_path / "a", "f", first_step=9) == first
    assert len({first, identity(tmp_path / "b", "f"), identity(tmp_path / "a", "g")}) == 3
    assert there.options["config"]["data"]["batch_size"] == Config().data.batch_size
    assert there.options["config"]["fingerprint"] == "g"
    assert dataclasses.asdict(Config())["log"].keys() == there.options["config"]["log"].keys()
