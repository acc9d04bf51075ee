"""A cloud of this machine's processes, which takes hosts away: `tests/launch/stand_ins.py` on PATH."""

import os
import pathlib
import random
import shutil
import stat
import subprocess
import sys
import time

import pytest

from lm.launch.records import jobs_in
from tests.commands.runs import CONFIG, REPOSITORY, XLA_FLAGS

STEPS = 400
TOOLS = ("gcloud", "kubectl", "sbatch", "srun", "squeue", "scancel", "scontrol")


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder for the cloud's state, its tools on PATH, and a clean repository with the code, in which to launch."""
    folder = tmp_path / "cloud"
    (folder / "bin").mkdir(parents=True)
    for tool in TOOLS:
        wrapper = folder / "bin" / tool
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tests/launch/stand_ins.py {tool} "$@"\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    # A link would not find its environment.
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("FAKE_CLOUD", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "lm", repository / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("FAKE_IMAGE", str(repository))  # where containers begin
    monkeypatch.chdir(repository)
    yield Cloud(folder, repository)
    for path in (folder / "hosts").glob("*"):
        _stand_ins(folder).take_away(path.name)


def _stand_ins(folder: pathlib.Path):
    os.environ["FAKE_CLOUD"] = str(folder)
    from tests.launch import stand_ins

    stand_ins.CLOUD = folder
    return stand_ins


class Cloud:
    """What a test does with the cloud."""

    def __init__(self, folder: pathlib.Path, repository: pathlib.Path):
        self.folder, self.repository = folder, repository
        self.tools = _stand_ins(folder)

    def commit(self, **files: str) -> None:
        """Add files to the repository (`config_py` is config.py) and commit everything."""
        for name, content in files.items():
            (self.repository / name.replace("_py", ".py")).write_text(content)
        git = ["git", "-C", str(self.repository), "-c", "user.name=test", "-c", "user.email=test@example.org"]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
            subprocess.run([*git, *command], check=True)

    def flags(self, devices: int) -> str:
        """Return the XLA flags of a host with simulated devices."""
        return f"{XLA_FLAGS} --xla_force_host_platform_device_count={devices}"

    def asked(self, *words: str) -> int:
        """Return how many commands that contain these words the tools were given."""
        lines = (self.folder / "asked.log").read_text().splitlines()
        return sum(all(word in line for word in words) for line in lines)

    def hosts_with_processes(self) -> list[str]:
        return [path.name for path in (self.folder / "hosts").glob("*") if self.tools.processes(path.name)]


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
    flags = ["--env", f"XLA_FLAGS={cloud.flags(2)}"]
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
                time.sleep(self.draw.uniform(1.0, 6.0))  # starting, compiling, training, saving
                kind = names[len(self.done) % len(names)]
                kinds[kind]()
                self.done.append(kind)
                self.left -= 1
            time.sleep(0.2)
        assert state.state == "done", (state, self.done)
        assert not self.left, f"it was over after {self.done}"


def wait_for(condition, seconds: float, what: str):
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return value
