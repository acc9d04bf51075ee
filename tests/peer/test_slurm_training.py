"""`lm launch` and a run of two hosts on a real Slurm, which preempts it: JAX finds the hosts, the losses are the same."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from tests.commands.runs import CONFIG, REPOSITORY, XLA_FLAGS, records, write_text
from tests.peer import test_slurm
from tests.peer.test_slurm import cluster

__all__ = ["cluster"]
pytestmark = test_slurm.pytestmark

STEPS = 60


@pytest.fixture
def launch(cluster, tmp_path):
    """Return a function that launches a run from a clean repository, waits for the command, and gives its workdir."""
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "lm", repository / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    text = CONFIG.format(path=str(write_text(tmp_path / "words.txt")), num_steps=STEPS)
    (repository / "config.py").write_text(text)
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
        subprocess.run([*git, *command], check=True)

    def run(target: str, *options: str) -> pathlib.Path:
        workdir = tmp_path / target
        flags = f"XLA_FLAGS={XLA_FLAGS} --xla_force_host_platform_device_count=2"
        command = [sys.executable, "-m", "lm", "launch", "--target", target, "--topology", "2*cpu:2", "--env", flags]
        command += [*options, "--", "train", "--config", "config.py", "--workdir", str(workdir)]
        environment = {**cluster.environment, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)}
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return workdir

    return run


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(workdir)}


def test_a_run_of_two_hosts_that_slurm_preempts_has_the_losses_of_one_that_is_left_alone(
    cluster, launch, record_property
):
    workdir = launch("slurm", "--option", "partition=cpus", "--option", f"python={sys.executable}", "--install", "")
    (number,) = cluster.run("squeue", "--noheader", "--partition=cpus", "--format=%i").stdout.split()
    for _ in range(1200):
        if len(losses(workdir)) > 10:
            break
        time.sleep(0.1)
    cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", text="#!/bin/sh\n")
    job = cluster.wait(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), "".join(
        path.read_text() for path in workdir.glob("launch/*/slurm/*.log")
    )
    (folder,) = workdir.glob("launch/*")
    ends = [
        sorted(path.read_text().split()[0] for path in one.iterdir()) for one in sorted(folder.glob("slurm/ends.*"))
    ]
    assert ends == [["42", "42"], ["0", "0"]]
    assert {json.loads(path.read_text())["state"] for path in (folder / "hosts").iterdir()} == {"done"}
    assert losses(workdir) == losses(launch("local")) and len(losses(workdir)) == STEPS
    record_property("validated", "a run of two hosts by a real Slurm, preempted and requeued")
