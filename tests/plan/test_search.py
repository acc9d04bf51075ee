"""The search finds ways to run the same training that fit, and pastes as overrides."""

import math

from lm.axes import MESH_AXES
from lm.plan.memory import memory
from lm.plan.plan import within
from lm.plan.search import candidates, change, mesh_of, meshes, micro_batches, overrides
from tests.plan.common import V5E, config_of


class Sixteen:
    """A topology without devices."""

    num_devices, capabilities = 16, V5E


def test_every_candidate_fits_keeps_the_global_batch_and_uses_every_device():
    config, seen = config_of(), set()
    for one in candidates(config, Sixteen):
        assert within(memory(one, mesh_of(one)).total, V5E.memory_bytes)
        assert math.prod(mesh_of(one).values()) == 16
        assert (one.data, one.optimizer.num_steps) == (config.data, config.optimizer.num_steps)
        seen.add((one.parallel.zero, one.parallel.tensor > 1, one.model.remat))
    assert {zero for zero, _, _ in seen} >= {1, 2, 3} and {tensor for _, tensor, _ in seen} == {True, False}
    assert len({remat for _, _, remat in seen}) >= 4


def test_meshes_share_all_devices_and_keep_the_slices():
    config = change(config_of(), slices=2, fsdp=8)
    found = list(meshes(config, 16))
    assert all(math.prod(sizes.values()) == 8 and "slices" not in sizes for sizes in found)
    assert len({tuple(sizes.items()) for sizes in found}) == len(found) > 5


def test_micro_batches_divide_a_devices_rows():
    assert micro_batches(config_of(**{"data.batch_size": "192"})) == [1, 2, 3, 4, 6, 12]


def test_overrides_are_what_differs():
    config = config_of()
    assert overrides(config, config) == []
    better = change(config, remat="full", micro=2, zero=2, fsdp=8, data=2)
    assert sorted(overrides(better, config)) == [
        "--config.model.remat=full",
        "--config.optimizer.accumulation_steps=2",
        "--config.parallel.data=2",
        "--config.parallel.fsdp=8",
        "--config.parallel.zero=2",
    ]
    assert set(mesh_of(config)) == set(MESH_AXES)
