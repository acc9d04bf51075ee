"""A run goes on on another number of devices, or laid out otherwise."""

import pathlib
import shutil

import pytest

from lm.checkpoint.layout import finished_steps
from tests.commands.runs import XLA_FLAGS, finish, records, start

STOPPED = 8


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> pathlib.Path:
    """A run on eight devices, as data and as parts of the parameters."""
    workdir = tmp_path_factory.mktemp("eight") / "run"
    assert train(config, workdir, 8, "--config.parallel.fsdp=2", "--config.checkpoint.keep=9") == 8
    return workdir


def train(config, workdir, devices: int, *arguments: str) -> int:
    """Run `lm train` on so many devices; return how many it had."""
    flags = f"{XLA_FLAGS} --xla_force_host_platform_device_count={devices}"
    process = start("train", f"--config={config}", f"--workdir={workdir}", *arguments, XLA_FLAGS=flags)
    code, _, err = finish(process)
    assert code == 0, err
    return int(err.split(" x cpu")[0].rsplit(" ", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "arguments"),
    [
        (1, ()),
        (2, ("--config.parallel.fsdp=2",)),
        (8, ("--config.parallel.fsdp=8",)),
        (8, ("--config.parallel.data=8", "--config.parallel.zero=1")),
    ],
    ids=str,
)
def test_a_run_saved_on_eight_devices_continues(config, whole, tmp_path, devices, arguments):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in finished_steps(str(run / "checkpoints")):
        if step > STOPPED:
            shutil.rmtree(run / "checkpoints" / str(step))
    assert train(config, run, devices, *arguments) == devices
    before, after = ({r["step"]: r["loss"] for r in records(folder)} for folder in (whole, run))
    assert f"resumed at step {STOPPED}" in (run / "log.txt").read_text()
    assert all(after[step] == before[step] for step in before if step <= STOPPED), "these did not run again"
    assert after == pytest.approx(before, rel=1e-4)
