"""`lm launch` as a person meets it: refusals, one job however often it is launched, and its records."""

import dataclasses
import json
import os
import subprocess

import pytest

from lm.__main__ import main
from lm.launch.records import Records, jobs_in
from lm.storage import write_atomic
from tests.launch.common import job

CONFIG = """
from lm.config import default


def get_config():
    config = default()
    config.model.num_layers = {layers}
    config.data.source = "shards"
    config.data.path = "gs://nowhere/shards"
    return config
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clean git repository with one config, in which the command is given."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.py").write_text(CONFIG.format(layers=1))
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "config"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.chdir(folder)
    return folder


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_made(repository, capsys, tmp_path):
    (repository / "config.py").write_text(CONFIG.format(layers=2))
    workdir = tmp_path / "nowhere" / "run"
    before = sorted(os.listdir(tmp_path))
    code = main(
        ["launch", "--target", "gke", "--topology", "v5e:4x5", "--option", "zoen=a", "--env", "x"]
        + ["--", "train", "--config", "config.py", "--workdir", str(workdir), "--config.model.num_layres=3"]
    )
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("lm: not launched; 6 problems:")
    for part in (
        "--env x: expected NAME=VALUE",
        "gke has no such option",
        'v5e has no slice of 4x5. Did you mean "4x8"?',
        "expected gs:// or s3:// (or add --shared-disk",
        "the working tree differs from its commit (config.py)",
        'config.model.num_layres is not a field. Did you mean "num_layers"?',
    ):
        assert part in said, said
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("target", "verb", "expected"),
    [
        (
            "gek",
            ["train", "--config", "config.py"],
            'expected one of local, tpu-vm, gke, xpk, slurm, sky. Did you mean "gke"?',
        ),
        ("slurm", ["tarin"], '"tarin" is not a verb that can be launched. Did you mean "train"?'),
        ("slurm", ["launch", "--target", "local"], "`lm launch` runs here alone"),
        ("slurm", ["train", "--confg", "config.py"], "error: "),
        ("slurm", ["train", "--config", "confgi.py", "--workdir", "run"], 'no file "confgi.py"'),
        ("slurm", ["eval", "--checkpoint", "nowhere"], "--checkpoint nowhere: no such folder"),
    ],
)
def test_a_mistake_is_named(repository, capsys, target, verb, expected):
    assert main(["launch", "--target", target, "--topology", "h100:8", "--", *verb]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(os.listdir(repository)) == [".git", "config.py"]


def test_a_secret_does_not_get_into_the_records(repository, capsys, tmp_path):
    verb = ["train", "--config", "config.py", "--workdir", str(tmp_path / "run"), "--config.data.source=stdlib"]
    launch = ["launch", "--target", "local", "--env", "WANDB_API_KEY=0123", "--", *verb, "--config.data.path=None"]
    assert main(launch) == 2
    said = capsys.readouterr().err
    assert "--env WANDB_API_KEY: a secret" in said and "0123" not in said
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_is_refused_with_what_to_change(repository, capsys):
    size = ["--config.model.d_model=4096", "--config.model.num_layers=24", "--config.data.source=stdlib"]
    verb = ["train", "--config", "config.py", "--workdir", "run", "--config.data.path=None", *size]
    assert main(["launch", "--target", "slurm", "--topology", "l4:1", "--", *verb]) == 2
    said = capsys.readouterr().err
    assert "config does not fit" in said
    assert "NVIDIA L4 has 16.9" in said
    assert "use more devices" in said


def test_what_is_missing_before_and_after_the_dashes_is_said(capsys):
    assert main(["launch", "--target", "local"]) == 2
    assert "what is to be launched comes after --" in capsys.readouterr().err
    assert main(["launch", "--target", "local", "--"]) == 2
    assert "after -- comes a verb" in capsys.readouterr().err


def test_the_same_words_are_the_same_job_and_others_another(capsys, tmp_path):
    def name(*more):
        command = [
            "launch",
            "--target",
            "local",
            "--dry-run",
            "--json",
            "--",
            "train",
            "--config",
            "experiments/tiny.py",
        ]
        assert main([*command, "--workdir", str(tmp_path / "run"), *more]) == 0
        return json.loads(capsys.readouterr().out)["job"]["name"]

    assert name() == name()
    assert name() != name("--config.seed=1")
    assert name().startswith("train-tiny-")


def test_the_records_of_a_workdir_tell_list_status_and_logs(tmp_path, capsys):
    from lm.launch.worker import work

    made = job(tmp_path, 'print("loss 3.2"); save(5)')
    work(made.folder, os.environ)
    capsys.readouterr()
    assert main(["launch", "list", str(tmp_path)]) == 0  # the workdir lies in it
    assert f"{made.name}  done     local   cpu:1" in capsys.readouterr().out
    assert main(["launch", "status", made.workdir, "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["state"], status["attempts"], status["progress"]) == ("done", 1, 5)
    assert status["hosts"] == [{"host": "0-0", "state": "done", "attempt": 1, "line": "loss 3.2"}]
    assert main(["launch", "logs", made.workdir, "--lines", "1"]) == 0
    assert capsys.readouterr().out == "loss 3.2\n"
    assert main(["launch", "logs", made.workdir, "--host", "3-3"]) == 2
    assert "--host 3-3: this job has 0-0" in capsys.readouterr().err


def test_stop_asks_the_hosts_and_a_new_submission_forgets_it(tmp_path, capsys):
    made = job(tmp_path, "pass")
    assert main(["launch", "stop", made.workdir]) == 0
    assert "asked to stop" in capsys.readouterr().out
    store = Records(made.folder)
    assert store.state(made).state == "stopped"
    store.submit(target="local")
    assert store.state(made).state == "waiting"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Deleted queued resource [x].", 0),
        ("ERROR: (gcloud) NOT_FOUND: no such resource", 0),
        ("ERROR: (gcloud) You do not currently have an active account selected.\n\nto log in.", 1),
    ],
)
def test_stop_says_with_its_exit_code_whether_what_costs_money_was_given_back(
    tmp_path, capsys, monkeypatch, said, code
):
    made = job(tmp_path, "pass")
    store = Records(made.folder)
    moved = dataclasses.replace(made, target="tpu-vm", topology="v5e:4x4", options={"zone": "us-west4-a"})
    write_atomic(os.path.join(store.folder, "job.json"), moved.to_json())
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(f"#!/bin/sh\ncat <<END >&2\n{said}\nEND\nexit {int('ERROR' in said)}\n")
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcloud.parent}{os.pathsep}{os.environ['PATH']}")
    assert main(["launch", "stop", made.workdir]) == code
    if code:
        last = capsys.readouterr().err
        assert "NOT GIVEN BACK" in last and "active account" in last and "queued-resources delete" in last
        assert last.count("\n") == 1


def test_a_workdir_without_jobs_says_so(tmp_path, capsys):
    assert main(["launch", "status", str(tmp_path)]) == 2
    assert "no job in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "{", '{"state": "running"}'])
def test_a_damaged_record_is_one_line(tmp_path, capsys, damage):
    made = job(tmp_path, "pass")
    (store,) = jobs_in(made.workdir)
    with open(os.path.join(store.folder, "hosts", "0-0.json"), "w") as file:
        file.write(damage)
    assert main(["launch", "status", made.workdir]) == 1
    said = capsys.readouterr().err
    assert "0-0.json" in said
    assert said.count("\n") == 1
