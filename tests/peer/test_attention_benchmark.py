"""The attention benchmark counts what its masks leave, and tells right from wrong in both of its processes."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from experiments.benchmarks import attention
from lm.kernels.flash_attention.options import Options, visible

pytestmark = pytest.mark.peer

F32 = {"dtype": "float32"}
CASES = [
    attention.Case(1, 1024, 4, 4, 64, causal=False, **F32),
    attention.Case(1, 1024, 4, 2, 64, window=200, **F32),
    attention.Case(1, 1024, 4, 4, 64, document=300, **F32),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pairs_are_what_the_masks_leave(case):
    at_T = jnp.arange(case.T)
    seen_TT = visible(Options(case.causal, case.window, None, 1.0), at_T[:, None], at_T[None])
    if case.document:
        seen_TT &= at_T[:, None] // case.document == at_T[None] // case.document
    assert case.pairs == seen_TT.sum()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_check_takes_the_right_masks_only(case, tmp_path):
    workers = {"jax": attention.Jax(), "torch": attention.Torch("cpu")}
    names = [name for name, one in attention.IMPLEMENTATIONS.items() if "cpu" in one.platforms]
    workers["jax"].reference(case, tmp_path)
    for name in names:
        worker = workers[attention.IMPLEMENTATIONS[name].side]
        assert worker.check(case, name, tmp_path) < attention.LIMITS["float32"], name
    other = dataclasses.replace(case, causal=True, window=None, document=None if case.document else 256)
    workers["jax"].reference(other, tmp_path)
    for name in names:
        assert workers[attention.IMPLEMENTATIONS[name].side].check(case, name, tmp_path) > 0.1, name


@pytest.mark.parametrize("name", ["JAX Pallas flash", "JAX splash"])
def test_peers_on_tpus_are_given_the_same_attention(name, tmp_path):
    worker, one = attention.Jax(), attention.IMPLEMENTATIONS[name]
    for case in filter(one.supports, (dataclasses.replace(case, N=2, K=1, dtype="bfloat16") for case in CASES)):
        worker.reference(case, tmp_path)
        with pltpu.force_tpu_interpret_mode():
            assert worker.check(case, name, tmp_path) < attention.LIMITS["bfloat16"], case.name


def test_a_run_times_every_implementation():
    command = [sys.executable, "-m", "experiments.benchmarks.attention"]
    options = ["--case", "B8 T256 ", "--rounds", "1", "--seconds", "0.01"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert not result["failed"]
    for name in ("ours, blockwise", "torch SDPA", "jax.nn"):
        assert done.stdout.count(f"| B8 T256 N6 H64 causal | {name} | ") == 1
        assert min(result["rows"][name][which]["tflops"] for which in ("forward", "both")) > 0
    assert result["rows"]["torch SDPA"]["both"]["ratio"] > 0
