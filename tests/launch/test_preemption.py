"""Jobs on clouds that take hosts away: what comes out is what an undisturbed run gives, nothing twice, nothing left."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from lm.__main__ import main
from lm.launch.records import jobs_in
from tests.commands.runs import CONFIG, write_text
from tests.launch.cloud import Cloud, cloud, wait_for

__all__ = ["cloud"]
STEPS = 400


def config_on(path: object, source: str = "text") -> str:
    """Return a config file of a tiny model whose peers do not wait long for a host that is gone."""
    text = CONFIG.format(path=str(path), num_steps=STEPS).replace('source = "text"', f'source = "{source}"')
    return text.replace(
        "    return config",
        "    config.parallel.heartbeat_seconds = 10\n"
        "    config.checkpoint.every_steps = 20\n"
        "    config.eval.every_steps = 100\n"
        "    return config",
    )


def losses(workdir: str) -> dict[int, float]:
    """Return the loss of every step of a run."""
    from lm.train.metrics import read_metrics

    return {r["step"]: r["loss"] for r in read_metrics(workdir) if r.get("kind", "train") == "train"}


def undisturbed(cloud: Cloud, workdir: pathlib.Path, devices: str) -> dict[int, float]:
    """Train on as many processes and devices of this machine, without a disturbance."""
    verb = ["train", "--config", "config.py", "--workdir", str(workdir)]
    flags = ["--env", f"XLA_FLAGS={cloud.flags(4)}"]
    command = [sys.executable, "-m", "lm", "launch", "--target", "local", "--topology", devices, *flags, "--", *verb]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return losses(str(workdir))


class Disturber:
    """Draws what happens next to a job, and when."""

    def __init__(self, seed: int, workdir: str, times: int):
        self.draw, self.workdir, self.left = random.Random(seed), workdir, times
        self.done: list[str] = []

    def run(self, kinds: dict, seconds: float = 400.0) -> None:
        """Disturb the job, each time after it got somewhere; then wait for its end."""
        (store,) = jobs_in(self.workdir)
        job, names = store.job(), list(kinds)
        self.draw.shuffle(names)
        deadline = time.monotonic() + seconds
        while (state := store.state(job)).state not in ("done", "failed", "stopped"):
            assert time.monotonic() < deadline, (state, self.done)
            attempt = max((host.attempt for host in state.hosts), default=0)
            if self.left and state.state == "running" and attempt > len(self.done):
                time.sleep(self.draw.uniform(2.0, 9.0))  # starting, compiling, training, saving
                kind = names[len(self.done) % len(names)]
                kinds[kind]()
                self.done.append(kind)
                self.left -= 1
            time.sleep(0.2)
        assert state.state == "done", (state, self.done)
        assert not self.left, f"it was over after {self.done}"


@pytest.mark.slow
def test_a_run_on_two_slurm_nodes_ends_as_if_nothing_had_happened(cloud, tmp_path):
    cloud.commit(config_py=config_on(write_text(tmp_path / "words.txt")))
    expected = undisturbed(cloud, tmp_path / "undisturbed", "2*cpu:4")
    assert len(expected) == STEPS
    workdir = str(tmp_path / "run")
    launch = ["launch", "--target", "slurm", "--topology", "2*cpu:4", "--grace-seconds", "20"]
    launch += ["--env", f"XLA_FLAGS={cloud.flags(4)}", "--option", f"python={sys.executable}", "--install", ""]
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
