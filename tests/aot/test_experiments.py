"""Every experiment that states its hardware (`HARDWARE = "v5e:4x4"`) compiles for it and fits."""

import pathlib
import re

import pytest

from lm.commands.common import load_config, resolve_for
from lm.parallel.topology import describe
from lm.train.aot import compile_step

EXPERIMENTS = {
    path: re.search(r'^HARDWARE = "(.*)"$', path.read_text(), re.M) for path in pathlib.Path("experiments").glob("*.py")
}
STATED = {path.name: (path, found[1]) for path, found in EXPERIMENTS.items() if found}


def test_some_experiment_states_its_hardware():
    assert "gpt2_124m.py" in STATED


@pytest.mark.aot
@pytest.mark.parametrize("name", sorted(STATED))
def test_the_experiment_compiles_for_its_hardware_and_fits(name):
    path, hardware = STATED[name]
    topology = describe(hardware)
    stats = compile_step(resolve_for(load_config(str(path)), topology), topology, optimize=False)
    assert stats.fits, f"{stats.peak_bytes / 2**30:.2f} GiB of {stats.limit_bytes / 2**30:.2f}"
