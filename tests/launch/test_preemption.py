"""Jobs on clouds that take hosts away: what comes out is what an undisturbed run gives, nothing twice, nothing left."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from lm.__main__ import main
from lm.launch import tpu_vm_driver
from lm.launch.records import jobs_in
from tests.commands.runs import write_text
from tests.launch.cloud import STEPS, Disturber, cloud, config_on, losses, undisturbed, wait_for

__all__ = ["cloud"]


@pytest.mark.slow
def test_a_run_on_two_slurm_nodes_ends_as_if_nothing_had_happened(cloud, tmp_path):
    cloud.commit(config_py=config_on(write_text(tmp_path / "words.txt")))
    expected = undisturbed(cloud, tmp_path / "undisturbed", "2*cpu:2")
    assert len(expected) == STEPS
    workdir = str(tmp_path / "run")
    launch = ["launch", "--target", "slurm", "--topology", "2*cpu:2", "--grace-seconds", "20"]
    launch += ["--env", f"XLA_FLAGS={cloud.flags(2)}", "--option", f"python={sys.executable}", "--install", ""]
    launch += ["--", "train", "--config", "config.py", "--workdir", workdir]
    assert main(launch) == 0
    (job,) = cloud.tools._batch_jobs()
    node = lambda number: f"node.{job}.{number}"  # noqa: E731

    def kill_verb():
        """Kill the training process alone, not its worker."""
        for pid in cloud.tools.processes(node(1)):
            words = pathlib.Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
            if b"train" in words and b"launch" not in words:
                os.kill(pid, 9)
                return

    Disturber(0, workdir, times=4).run(
        {
            "preempted": lambda: cloud.tools.preempt_job(job, grace=20.0),
            "a node lost": lambda: cloud.tools.take_away(node(1)),
            "the process killed": kill_verb,
            "preempted without grace": lambda: cloud.tools.preempt_job(job, grace=0.0),
        }
    )
    assert losses(workdir) == expected
    wait_for(lambda: not cloud.hosts_with_processes(), 60, "all processes to end")
    # The same command again finds nothing to do.
    assert main(launch) == 0
    assert cloud.asked("sbatch") == 1
    assert (
        json.loads(subprocess.check_output([sys.executable, "-m", "lm", "launch", "status", workdir, "--json"]))[0][
            "state"
        ]
        == "done"
    )


@pytest.mark.slow
def test_a_run_on_two_tpu_hosts_ends_as_if_nothing_had_happened(cloud, tmp_path, monkeypatch):
    cloud.commit(config_py=config_on(write_text(tmp_path / "words.txt")))
    expected = undisturbed(cloud, tmp_path / "undisturbed", "2*cpu:2")
    workdir = str(tmp_path / "run")
    monkeypatch.setattr(tpu_vm_driver, "_POLL_SECONDS", 1.0)
    monkeypatch.setattr(tpu_vm_driver, "_BACKOFF_SECONDS", (0.5, 2.0))
    (cloud.folder / "refusals").write_text("2")  # no quota, at first
    launch = [
        "launch",
        "--target",
        "tpu-vm",
        "--topology",
        "v5p:2x2x2",
        "--spot",
        "--shared-disk",
        "--option",
        "zone=us-east5-a",
    ]
    launch += ["--env", f"XLA_FLAGS={cloud.flags(2)}", "--option", f"python={sys.executable}", "--install", ""]
    launch += ["--", "train", "--config", "config.py", "--workdir", workdir]
    problems = []

    def disturb():
        try:
            wait_for(lambda: jobs_in(workdir), 60, "the job's record")
            (store_,) = jobs_in(workdir)
            name = store_.job().name
            Disturber(1, workdir, times=2).run(
                {
                    "preempted": lambda: cloud.tools.suspend(name, grace=20.0),
                    "lost": lambda: cloud.tools.suspend(name),
                }
            )
        except BaseException as error:
            problems.append(error)
            for each in jobs_in(workdir):
                each.ask_to_stop("the test failed")

    thread = threading.Thread(target=disturb)
    thread.start()
    code = main(launch)
    thread.join()
    assert (code, problems) == (0, [])
    assert losses(workdir) == expected
    assert cloud.asked("queued-resources create") == 2 + 3
    assert not list((cloud.folder / "resources").glob("*")), "something is left that costs money"
    assert not cloud.hosts_with_processes()
    assert main(launch) == 0  # the same job again: nothing to do
    assert cloud.asked("queued-resources create") == 2 + 3
