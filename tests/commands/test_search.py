"""`lm sweep --search`: alone, shared, killed and stopped; with trials that fail."""

import json
import os
import re
import shlex
import signal

import pytest

from tests.commands.runs import finish, records, start
from tests.commands.test_sweep import OWN, until

pytestmark = [pytest.mark.slow, pytest.mark.peer]

SEARCH = '''
"""Which rate suits made-up words?"""

from lm.sweep.algebra import Choice, Search, Uniform


def get_search():
    return Search(
        config={config!r},
        space={{"optimizer.learning_rate": Uniform(1e-4, 1.0, log=True), {more}}},
        trials=8,
        base={{"optimizer.num_steps": {num_steps}, "eval.every_steps": 4, "checkpoint.every_steps": 8, {base}}},
    )
'''


@pytest.fixture
def search_file(config, tmp_path):
    def write(more="", base="", num_steps=16):
        path = tmp_path / "rates.py"
        path.write_text(SEARCH.format(config=str(config), more=more, base=base, num_steps=num_steps))
        return path

    return write


def rows(folder) -> list[dict]:
    """Return the rows of the ledger in the order of the trials."""
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def results(folder) -> int:
    return len(list((folder / "results").glob("*.json"))) if (folder / "results").is_dir() else 0


def test_a_search_ends_with_its_report_and_the_command_it_shows_trains_the_best_trial(search_file, tmp_path):
    folder = tmp_path / "search"
    code, out, err = finish(start("sweep", "--config", search_file(), "--workdir", folder, "--search", "optuna"))
    assert code == 0, err
    ledger = rows(folder)
    assert [row["variant"] for row in ledger] == [f"trial {number}" for number in range(8)]
    assert {row["status"] for row in ledger} == {"done", "pruned"}
    for row in ledger:
        evals = [r for r in records(folder / row["folder"], "eval") if r["split"] == "validation"]
        assert row["steps"] == evals[-1]["step"] and (row["steps"] == 16) == (row["status"] == "done")
        assert row["config"]["optimizer"]["learning_rate"] == row["overrides"]["optimizer.learning_rate"]
    assert (folder / "report.html").exists() and err.count("of 8 trials") == 8
    assert len(re.findall("compiling", (folder / "runs" / ledger[0]["id"] / "log.txt").read_text())) == 1
    assert not any("compiling" in (folder / "runs" / row["id"] / "log.txt").read_text() for row in ledger[1:])

    command = shlex.split(out.strip().splitlines()[-1])
    command[command.index("runs/best")] = str(tmp_path / "best")
    code, out, err = finish(start(*command[1:], "--json"))
    assert code == 0, err
    best = min(row["final"]["bits_per_byte"] for row in ledger if row["status"] == "done")
    assert json.loads(out)["bits_per_byte"] == pytest.approx(best, rel=1e-6)


def test_two_commands_share_a_search_and_one_of_them_may_be_killed(search_file, tmp_path):
    folder = tmp_path / "shared"
    command = ("sweep", "--config", search_file(num_steps=24), "--workdir", folder, "--search", "random")
    workers = [start(*command) for _ in range(2)]
    until(lambda: results(folder) >= 2 and len({claim["pid"] for claim in held(folder)}) == 2)
    workers[0].send_signal(signal.SIGKILL)
    ends = [finish(worker) for worker in workers]
    assert [code for code, *_ in ends] == [-9, 0], ends
    ledger = rows(folder)
    assert [row["variant"] for row in ledger] == [f"trial {number}" for number in range(8)]
    assert all(row["status"] == "done" for row in ledger), "the trial of the one killed is taken up"
    assert len({row["id"] for row in ledger}) == 8


def held(folder) -> list[dict]:
    """Return the claims of trials that are held at this moment."""
    claims = [json.loads(path.read_text() or "{}") for path in folder.glob("claims/trial-*.json")]
    return [claim for claim in claims if claim.get("until")]


def test_a_trial_whose_process_is_killed_has_failed_and_the_search_goes_on(search_file, tmp_path):
    folder = tmp_path / "killed"
    worker = start(
        "sweep", "--config", search_file(num_steps=200), "--workdir", folder, "--search", "random", "--trials", 2
    )
    until(lambda: list(folder.glob("runs/*/metrics.jsonl")))
    (claim,) = held(folder)
    os.kill(claim["pid"], signal.SIGKILL)
    code, _, err = finish(worker)
    assert code == 0, err
    first, second = rows(folder)
    assert (first["status"], first["failure"]) == ("failed", "its process was ended by SIGKILL (out of memory?)")
    assert second["status"] == "done"


def test_a_search_stopped_by_a_signal_continues_the_trial_where_it_was(search_file, tmp_path):
    folder = tmp_path / "stopped"
    command = (
        "sweep",
        "--config",
        search_file(num_steps=400),
        "--workdir",
        folder,
        "--search",
        "random",
        "--trials",
        1,
    )
    worker = start(*command)
    until(lambda: any(len(records(path)) > 20 for path in folder.glob("runs/*")))
    worker.send_signal(signal.SIGTERM)
    code, _, err = finish(worker)
    assert code == 42, err
    assert err.splitlines()[-1] == "lm: stopped with 1 of 1 trials to go; the same command continues."
    code, _, err = finish(start(*command))
    assert code == 0, err
    (row,) = rows(folder)
    assert row["status"] == "done" and "resumed at step" in (folder / row["folder"] / "log.txt").read_text()
    steps = [record["step"] for record in records(folder / row["folder"])]
    assert steps == list(range(1, 401))


MORE = '"objective": Choice(("next_token", "broken:fail")), "model.num_heads": Choice((2, 3))'


def test_trials_that_fail_are_rows_and_a_config_proposed_again_is_not_trained_again(search_file, tmp_path):
    (tmp_path / "broken.py").write_text(OWN)
    code, out, err = finish(
        start(
            "sweep", "--config", search_file(MORE),
            "--workdir", tmp_path / "failing", "--search", "random", "--trials", 8, "--json",
        )
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)["trials"]
    assert len(found) == 8 and {trial["status"] for trial in found} == {"done", "failed"}
    for trial in found:
        own = trial["overrides"]
        if own["model.num_heads"] == 3:
            assert "num_heads" in trial["failure"]
        elif own["objective"] == "broken:fail":
            assert trial["failure"] == "TypeError: no such thing"
        else:
            assert trial["status"] == "done"

    file = search_file().with_name("few.py")
    file.write_text(search_file().read_text().replace("Uniform(1e-4, 1.0, log=True)", "Choice((1e-3, 1e-2))"))
    folder = tmp_path / "few"
    code, out, err = finish(start("sweep", "--config", file, "--workdir", folder, "--search", "random", "--json"))
    assert code == 0, err
    found = json.loads(out)["trials"]
    assert results(folder) == 2 and len({(trial["id"], trial["value"]) for trial in found}) == 2 and len(found) == 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--search", "optuna", "--retry-failed"), "--retry-failed is for sweeps"),
        (("--search", "optuna", "--trials", "0"), "--trials 0"),
        (("--trials", "3"), "--trials is for a search"),
        (("--search", "optuna", "--workdir", "gs://bucket/x"), "journal, which needs a local or network disk"),
        (("--search", "optuna", "--config.model.num_layer=3",), 'Did you mean "num_layers"'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(lm, search_file, tmp_path, arguments, words):
    assert words in lm("sweep", "--config", search_file(), "--workdir", tmp_path / "x", *arguments).refusal(2)


def test_a_field_that_does_not_exist_is_refused_before_anything_is_trained(lm, search_file, tmp_path):
    file = search_file('"optimizer.bee": Choice((1, 2))')
    done = lm("sweep", "--config", file, "--workdir", tmp_path / "x", "--search", "optuna")
    assert "optimizer.bee" in done.refusal(2) and not (tmp_path / "x").exists()


def test_a_dry_run_shows_the_space_and_makes_nothing(lm, search_file, tmp_path):
    done = lm("sweep", "--config", search_file(), "--workdir", tmp_path / "x", "--search", "optuna", "--dry-run")
    assert done.out == "optimizer.learning_rate  0.0001 to 1, logarithmic\n8 trials of up to 16 steps\n"
    assert not (tmp_path / "x").exists()
