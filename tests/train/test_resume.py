"""A run that is stopped, however it is stopped, and started again equals one that never was: bit for bit."""

import os
import random
import signal
import time

import pytest

from lm.errors import Preempted
from lm.train.interrupts import Interrupts
from tests.commands.runs import finish, records, start, write_config, write_text

# Muon, accumulation and dropout: a resumed run needs every part of the state.
OPTIONS = ["--config.optimizer.name=muon", "--config.optimizer.accumulation_steps=2", "--config.model.dropout=0.1"]
STEPS = 80


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return write_config(folder / "tiny_words.py", write_text(folder / "words.txt"), STEPS)


def train(config, workdir, *arguments):
    return start("train", f"--config={config}", f"--workdir={workdir}", *OPTIONS, *arguments)


@pytest.fixture(scope="module")
def undisturbed(config):
    workdir = config.parent / "undisturbed"
    code, _, err = finish(train(config, workdir))
    assert code == 0, err
    return workdir


def stop(process, number, when) -> tuple[int, str]:
    """Signal a process as soon as `when()` is true; return its exit code and stderr."""
    deadline = time.monotonic() + 240
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    code, _, err = finish(process)
    return code, err


def last_step(workdir) -> int:
    return max((r["step"] for r in records(workdir)), default=0)


def is_saving(workdir) -> bool:
    return any(".orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def numbers(workdir, kind="train") -> list[dict]:
    """Return the records without what depends on the clock."""
    clocks = ("seconds", "tokens_per_second", "mfu")
    return [{name: value for name, value in r.items() if name not in clocks} for r in records(workdir, kind)]


def assert_same_run(workdir, undisturbed):
    assert [r["step"] for r in records(workdir)] == list(range(1, STEPS + 1))
    assert numbers(workdir) == numbers(undisturbed)
    assert numbers(workdir, "eval") == numbers(undisturbed, "eval")


@pytest.mark.slow
def test_a_run_killed_while_it_saves_and_then_preempted_repeats_every_loss(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    code, _ = stop(train(config, workdir), signal.SIGKILL, lambda: last_step(workdir) >= 8 and is_saving(workdir))
    assert code == -signal.SIGKILL
    killed_at, half_written = last_step(workdir), is_saving(workdir)
    assert killed_at < STEPS

    code, err = stop(train(config, workdir), signal.SIGTERM, lambda: last_step(workdir) > killed_at + 2)
    assert code == 42, err
    assert err.splitlines()[-1].startswith("lm: stopped by SIGTERM at step ")
    assert "saved; run the same command to continue" in err and "Traceback" not in err
    assert ("ignoring half-written checkpoint" in err) == half_written
    stopped_at = last_step(workdir)
    assert (workdir / "checkpoints" / str(stopped_at)).is_dir()

    code, _, err = finish(train(config, workdir))
    assert code == 0, err
    assert f"resumed at step {stopped_at} of {STEPS}" in err
    assert_same_run(workdir, undisturbed)


def test_inside_the_loop_one_ctrl_c_waits_for_the_step_and_a_second_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored, in a shell's background job
    with Interrupts().installed() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested == "SIGINT"
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested == "SIGTERM"
        with pytest.raises(Preempted, match="second Ctrl-C"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_loop_a_signal_stops_at_once():
    with Interrupts().installed(), pytest.raises(Preempted, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_at_three_random_moments_repeats_every_loss(config, undisturbed, tmp_path, seed):
    workdir, draw = tmp_path / "run", random.Random(seed)
    for _ in range(3):
        target, pause = last_step(workdir) + draw.randint(1, 18), draw.uniform(0, 0.02)
        reached = lambda target=target, pause=pause: last_step(workdir) >= target and not time.sleep(pause)  # noqa: E731
        assert stop(train(config, workdir), signal.SIGKILL, reached)[0] == -signal.SIGKILL
        assert last_step(workdir) < STEPS
    code, _, err = finish(train(config, workdir))
    assert code == 0, err
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_42_and_every_loss_repeats(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    code, err = stop(train(config, workdir), signal.SIGINT, lambda: last_step(workdir) >= 7)
    assert code == 42 and err.splitlines()[-1].startswith("lm: stopped by SIGINT at step "), err
    code, _, err = finish(train(config, workdir))
    assert code == 0, err
    assert_same_run(workdir, undisturbed)
