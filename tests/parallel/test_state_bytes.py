"""State bytes by ZeRO stage against the shardings that training uses; nothing is allocated."""

import math

import jax
import pytest

from lm.parallel.mesh import make_mesh
from lm.parallel.state_bytes import state_bytes
from lm.train.aot import abstract_inputs
from lm.train.step import build_step
from tests.train.common import small_config


def held(tree, whole: bool = False) -> int:
    """Bytes of one device's part of a tree of sharded shapes, or of all of it."""
    shape = lambda leaf: leaf.shape if whole else leaf.sharding.shard_shape(leaf.shape)  # noqa: E731
    return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_each_stage_splits_what_training_splits(optimizer):
    overrides = {"optimizer.name": optimizer, "optimizer.ema_decay": "0.9", "precision.parameters": "bfloat16"}
    config = small_config(devices=8, fsdp=8, **overrides)
    state = build_step(config, make_mesh(config.parallel, jax.devices()[:8])).state
    params, moments, average = state.params, state.opt_state, state.extra["ema"]
    by_stage = state_bytes(config, 8)
    whole = {
        "parameters": held(params, whole=True),
        "gradients": 2 * held(params, whole=True),  # f32 where the parameters are bf16
        "optimizer": held(moments, whole=True),
        "average": held(average, whole=True),
    }
    shared = {
        "parameters": held(params),
        "gradients": 2 * held(params),
        "optimizer": held(moments),
        "average": held(average),
    }
    assert shared["parameters"] < 0.2 * whole["parameters"]
    assert all(shared[name] < whole[name] for name in whole)
    split_from = {"parameters": 3, "gradients": 2, "optimizer": 1, "average": 1}
    for stage in range(4):
        expected = {name: (shared if stage >= split_from[name] else whole)[name] for name in whole}
        assert by_stage[stage] == {**expected, "total": sum(expected.values())}, stage


# One device divides nothing, at any stage; between steps stage 2 holds what stage 1 does.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "devices"), [("3", 1), ("2", 8), *((zero, devices) for zero in ("1", "3") for devices in (2, 4, 8))]
)
def test_a_compiled_steps_arguments_are_the_formulas_state_and_a_batch(devices, zero):
    config = small_config(devices, fsdp=devices, **{"parallel.zero": zero})
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    built = build_step(config, mesh)
    batch, scalars = abstract_inputs(config, mesh)
    compiled = built.step.lower(built.state, batch, scalars).compile().memory_analysis()
    formula = state_bytes(config, devices)[int(zero)]
    state = compiled.argument_size_in_bytes - held(batch) - held(scalars)
    assert state == pytest.approx(formula["parameters"] + formula["optimizer"], rel=0.03)
