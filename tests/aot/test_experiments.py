"""Every experiment that states its hardware (`HARDWARE = "v5e:4x4"`) compiles for it and fits, as `lm plan` says."""

import pathlib
import re

import pytest

from lm.commands.common import load_config, resolve_for
from lm.parallel.topology import describe
from lm.plan.plan import MARGIN, make_plan
from lm.train.aot import compile_step

EXPERIMENTS = {
    path: re.search(r'^HARDWARE = "(.*)"$', path.read_text(), re.M) for path in pathlib.Path("experiments").glob("*.py")
}
OPTIMIZED = ("llama_1b.py", "llama_7b.py")  # compiled as they would run, and held against the formulas
STATED = {path.name: (path, found[1]) for path, found in EXPERIMENTS.items() if found}


def test_some_experiment_states_its_hardware():
    assert {"gpt2_124m.py", *OPTIMIZED} <= set(STATED)


@pytest.mark.aot
@pytest.mark.parametrize("name", sorted(STATED))
def test_the_experiment_compiles_for_its_hardware_and_fits(name):
    path, hardware = STATED[name]
    topology = describe(hardware)
    config = resolve_for(load_config(str(path)), topology)
    if name in OPTIMIZED:
        plan = make_plan(config, topology, compiled=True)
        stats = plan.compiled
        assert plan.memory.arguments == pytest.approx(stats.argument_bytes, rel=0.01)
        assert plan.memory.total == pytest.approx(stats.peak_bytes, rel=MARGIN)
    else:
        stats = compile_step(config, topology, optimize=False)
    assert stats.fits, f"{stats.peak_bytes / 2**30:.2f} GiB of {stats.limit_bytes / 2**30:.2f}"
