"""`lm sweep`: killed and continued, shared by two workers, with runs that fail; the ledger is the same."""

import json
import signal
import time

import pytest

from tests.commands.runs import finish, start

pytestmark = pytest.mark.slow

SWEEP = '''
"""Three rates."""

from lm.sweep.algebra import Sweep, chain, named, seeds, sweep


def get_sweep():
    return Sweep(
        config={config!r},
        variants={variants},
        baseline={baseline!r},
        seeds=seeds(2),
        base={{"optimizer.num_steps": {num_steps}, "checkpoint.every_steps": 4, "data.batch_size": 4}},
    )
'''
RATES = 'sweep("optimizer.learning_rate", [1e-2, 2e-2, 4e-2])'
BASELINE = "learning_rate=0.01"
CLOCKS = ("seconds", "tokens_per_second", "mfu")

OWN = '''
"""Objectives that end their process, or raise."""

import os


def kill(*args, **kwargs):
    os.kill(os.getpid(), 9)


def fail(*args, **kwargs):
    raise TypeError("no such thing")
'''


@pytest.fixture
def sweep_file(config, tmp_path):
    def write(variants=RATES, baseline=BASELINE, num_steps=12):
        path = tmp_path / "rates.py"
        path.write_text(SWEEP.format(config=str(config), variants=variants, baseline=baseline, num_steps=num_steps))
        return path

    return write


def ledger(folder) -> list[dict]:
    """Return the rows without what differs from one machine, or one moment, to another."""
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


@pytest.fixture
def undisturbed(sweep_file, tmp_path):
    code, out, err = finish(start("sweep", "--config", sweep_file(), "--workdir", tmp_path / "undisturbed"))
    assert code == 0, err
    assert "learning_rate=0.04" in out and (tmp_path / "undisturbed" / "report.html").exists()
    return tmp_path / "undisturbed"


def results(folder) -> int:
    return len(list((folder / "results").glob("*.json"))) if (folder / "results").is_dir() else 0


def until(condition) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sweep_killed_twice_or_shared_by_two_workers_has_the_same_ledger(sweep_file, undisturbed, tmp_path):
    rows = ledger(undisturbed)
    assert len(rows) == 6 and len({row["id"] for row in rows}) == 6
    assert all(row["status"] == "done" and row["final"]["bits_per_byte"] > 0 for row in rows)

    killed = tmp_path / "killed"
    for count in (1, 4):
        worker = start("sweep", "--config", sweep_file(), "--workdir", killed)
        until(lambda count=count: results(killed) >= count)
        worker.send_signal(signal.SIGKILL)
        finish(worker)
    before = {path.name: path.stat().st_mtime_ns for path in (killed / "results").iterdir()}
    code, _, err = finish(start("sweep", "--config", sweep_file(), "--workdir", killed))
    assert code == 0, err
    assert ledger(killed) == rows
    after = {path.name: path.stat().st_mtime_ns for path in (killed / "results").iterdir()}
    assert before.items() <= after.items(), "no run is done twice"

    shared = tmp_path / "shared"
    workers = [start("sweep", "--config", sweep_file(), "--workdir", shared) for _ in range(2)]
    ends = [finish(worker) for worker in workers]
    assert [code for code, *_ in ends] == [0, 0], ends
    assert ledger(shared) == rows
    assert sum(err.count("bits per byte after") for *_, err in ends) == 6, ends


def test_a_sweep_stopped_by_a_signal_says_how_to_continue(sweep_file, tmp_path):
    folder = tmp_path / "stopped"
    worker = start("sweep", "--config", sweep_file(num_steps=2000), "--workdir", folder)
    until(lambda: list(folder.glob("runs/*/metrics.jsonl")))
    worker.send_signal(signal.SIGTERM)
    code, _, err = finish(worker)
    assert code == 42, err
    assert err.splitlines()[-1] == "lm: stopped with 6 of 6 runs to go; the same command continues."


def test_a_run_that_fails_is_a_row_and_the_others_go_on(sweep_file, tmp_path):
    (tmp_path / "broken.py").write_text(OWN)
    variants = (
        'chain(named("plain"), named("killed", {"objective": "broken:kill"}), '
        'named("raises", {"objective": "broken:fail"}), named("diverges", {"optimizer.learning_rate": 1e30}))'
    )
    folder = tmp_path / "failing"
    command = ("sweep", "--config", sweep_file(variants, "plain"), "--workdir", folder, "--json")
    code, out, err = finish(start(*command))
    assert code == 0, err
    rows = {(row["variant"], row["seed"]): row for row in ledger(folder)}
    assert len(rows) == 8
    for seed in (0, 1):
        assert rows["plain", seed]["status"] == "done"
        assert "SIGKILL" in rows["killed", seed]["failure"]
        assert rows["raises", seed]["failure"] == "TypeError: no such thing"
        assert "nan at step" in rows["diverges", seed]["failure"].replace("inf", "nan")
    assert "Traceback" not in err and len(json.loads(out)) > 0

    (tmp_path / "broken.py").write_text(OWN.replace('raise TypeError("no such thing")', 'raise KeyError("another")'))
    code, _, err = finish(start(*command, "--retry-failed"))
    assert code == 0, err
    rows = {(row["variant"], row["seed"]): row for row in ledger(folder)}
    assert rows["raises", 0]["failure"] == "KeyError: 'another'" and len(rows) == 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--config", "nothing.py"), 'no file "nothing.py"'),
        ((), "--config FILE is needed"),
        (("--seeds", "0"), "--seeds 0"),
        (("--config.model.num_layer=3",), 'Did you mean "num_layers"'),
    ],
)
def test_a_mistake_is_one_line(lm, sweep_file, tmp_path, arguments, words):
    given = ("--config", sweep_file()) if arguments and arguments[0] != "--config" else ()
    assert words in lm("sweep", *given, "--workdir", tmp_path / "x", *arguments).refusal(2)


def test_a_dry_run_lists_the_runs_and_makes_nothing(lm, sweep_file, tmp_path):
    done = lm("sweep", "--config", sweep_file(), "--workdir", tmp_path / "x", "--dry-run")
    assert done.code == 0 and done.out.endswith("6 runs, 1 compilation\n") and not (tmp_path / "x").exists()


def test_equal_seconds_give_a_slower_variant_fewer_steps(sweep_file, tmp_path):
    """64 times the feed-forward: slower on any machine."""
    path = sweep_file('chain(named("plain"), named("slow", {"model.d_ff": 8192}))', "plain", num_steps=30)
    path.write_text(path.read_text().replace("seeds=seeds(2)", 'seeds=seeds(1), match="seconds"'))
    folder = tmp_path / "seconds"
    command = ("sweep", "--config", path, "--workdir", folder, "--config.optimizer.num_steps=60")
    code, out, _ = finish(start(*command, "--dry-run"))
    assert code == 0 and out.endswith("2 runs, 2 compilations\n") and not folder.exists()
    code, _, err = finish(start(*command))
    assert code == 0, err
    steps = {row["variant"]: row["steps"] for row in ledger(folder)}
    assert steps["plain"] == 60 and steps["slow"] < 45, steps
    assert {row["steps"] for row in ledger(folder / "calibration")} == {40}
