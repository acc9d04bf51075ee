"""A cloud of this machine's processes, which takes hosts away: `tests/launch/stand_ins.py` on PATH."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import time

import pytest

from tests.commands.runs import REPOSITORY, XLA_FLAGS

TOOLS = ("gcloud", "kubectl", "sbatch", "srun", "squeue", "scancel", "scontrol")

# Several hosts of a machine with few cores: what waits for a dead one must not wait long.
MODEL = """
    config.parallel.heartbeat_seconds = 10
    config.checkpoint.every_steps = 25
    config.eval.every_steps = 200
    config.log.every_steps = 1
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder for the cloud's state, its tools on PATH, and a clean repository with the code, in which to launch."""
    folder = tmp_path / "cloud"
    (folder / "bin").mkdir(parents=True)
    for tool in TOOLS:
        wrapper = folder / "bin" / tool
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tests/launch/stand_ins.py {tool} "$@"\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    (folder / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("FAKE_CLOUD", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "lm", repository / "lm", ignore=shutil.ignore_patterns("__pycache__"))
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


def wait_for(condition, seconds: float, what: str):
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return value
