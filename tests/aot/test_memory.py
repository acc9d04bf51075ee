"""What remat and bf16 save on a TPU, and that first principles say how much.

The 1B model is compiled with little optimization, several times faster: its figures in `experiments/benchmarks/` are
those of the real program.
"""

import pytest

from experiments.benchmarks import precision, remat
from lm.model.memory import activation_bytes
from lm.parallel.topology import describe
from lm.train.aot import compile_step

pytestmark = pytest.mark.aot


def test_remat_full_takes_what_first_principles_say_and_far_less_than_none():
    topology, taken = describe("v5e:1x1"), {}
    for policy in ("none", "full"):
        config = remat.config_of("aot", policy, topology.capabilities)
        taken[policy] = compile_step(config, topology).temporary_bytes - remat.gradient_bytes(config)
        expected = activation_bytes(config.model, policy, batch=remat.BATCH, length=1024, itemsize=2)
        assert taken[policy] == pytest.approx(expected.total, rel=0.15)
    assert taken["none"] >= 2.5 * taken["full"]


def test_bf16_takes_at_most_0_55_of_the_temporaries_of_f32_in_a_1b_model():
    topology = describe(precision.TOPOLOGY)
    taken = {
        compute: precision.temporaries(precision.config_of(compute, topology), topology, optimize=False)
        for compute in ("bfloat16", "float32")
    }
    assert taken["bfloat16"] <= 0.55 * taken["float32"]
