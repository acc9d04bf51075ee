"""Topologies are described without hardware, and a mistake in one is a line that says what is accepted."""

import re

import pytest

from lm.axes import MESH_AXES
from lm.config import apply_overrides, default
from lm.errors import LmError, UsageError
from lm.parallel import topology as topologies
from lm.parallel.topology import describe, topology_mesh
from lm.resolve import resolve
from lm.train.aot import abstract_inputs, compile_step
from tests.train.common import fake_batch, mesh_of, scalars, small_config


@pytest.mark.parametrize(
    "name, says",
    [
        ("v5x:4x4", 'Did you mean "v5p"?|Did you mean "v5e"?'),
        ("v5e", "a family and its shape, like"),
        ("v5e:4x4x", "a family and its shape, like"),
        ("v5e:0x4", "a family and its shape, like"),
        ("v5e:4x4x4", "v5e has 2 dimensions, like v5e:4x4"),
        ("v5p:4x4", "v5p has 3 dimensions, like v5p:4x4x4"),
        ("h200:9", "a number of GPUs up to 8, or a multiple of it"),
        ("h200:2x4", "a number of GPUs up to 8, or a multiple of it"),
    ],
)
def test_an_unknown_topology_is_refused(name, says):
    with pytest.raises(UsageError, match=f'^topology "{name}": ') as error:
        describe(name)
    assert re.search(says, str(error.value))


@pytest.mark.parametrize(
    "name, extra, failure", [("v5e:2x2", "tpu", RuntimeError), ("h200:8", "gpu", NotImplementedError)]
)
def test_a_missing_compiler_is_one_line_that_names_the_extra(name, extra, failure, monkeypatch):
    def missing(**_):
        raise failure("not installed")

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", missing)
    with pytest.raises(LmError, match=rf"compiling for {name} needs .*install the extra `{extra}`"):
        describe(name)


def test_abstract_inputs_are_those_of_a_training_step():
    config, mesh = small_config(devices=2), mesh_of(2, 1)
    batch, hparams = abstract_inputs(config, mesh)
    real = fake_batch(mesh, 0)
    describe_leaf = lambda a: (a.shape, a.dtype, a.sharding)  # noqa: E731
    assert {k: describe_leaf(v) for k, v in batch.items()} == {k: describe_leaf(v) for k, v in real.items()}
    from tests.train.common import built_step

    assert set(hparams) == set(scalars(built_step(config), 0))


def small_for(topology, **overrides):
    config = default()
    small = {"model.num_layers": "2", "model.d_model": "256", "model.num_heads": "2", "model.vocab_size": "512"}
    small |= {"data.batch_size": str(2 * topology.num_devices), "precision.compute": "bfloat16"}
    apply_overrides(config, list((small | overrides).items()))
    return resolve(config, devices=topology.num_devices, capabilities=topology.capabilities)


@pytest.mark.aot
@pytest.mark.parametrize(
    "name, devices, kind, gib",
    [
        ("v4:2x2x1", 4, "TPU v4", 30.75),
        ("v5e:1x1", 1, "TPU v5 lite", 15.75),
        ("v5e:4x4", 16, "TPU v5 lite", 15.75),
        ("v5p:4x4x4", 64, "TPU v5", 95.74),
        ("v6e:2x4", 8, "TPU v6 lite", 31.25),
        ("tpu7x:2x2x1", 8, "TPU7x", 94.75),
    ],
)
def test_tpu_topologies_have_their_devices_and_memory(name, devices, kind, gib):
    topology = describe(name)
    assert (topology.num_devices, topology.devices[0].device_kind) == (devices, kind)
    assert topology.capabilities.platform == "tpu"
    assert topology.capabilities.memory_bytes == int(gib * 2**30)


@pytest.mark.aot
def test_libtpus_word_on_an_impossible_shape_is_passed_on():
    with pytest.raises(UsageError, match="libtpu says .*not divisible"):
        describe("v5e:3x5")


@pytest.mark.aot
def test_a_sharded_step_compiles_with_its_collectives():
    topology = describe("v5e:2x2")
    config = small_for(topology, **{"parallel.data": "1", "parallel.fsdp": "4"})
    shape = topology_mesh(topology, config.parallel).shape
    assert {axis: size for axis, size in shape.items() if size > 1} == {"fsdp": 4} and set(shape) == set(MESH_AXES)
    stats = compile_step(config, topology, optimize=False)
    assert stats.fits and stats.num_devices == 4
    assert (
        stats.collectives["all-gather"] > 0
        and stats.collectives["all-reduce"] + stats.collectives["reduce-scatter"] > 0
    )
    alone = compile_step(small_for(topology, **{"parallel.data": "4"}), topology, optimize=False)
    assert alone.collectives["all-gather"] == 0
    assert stats.argument_bytes < 0.3 * alone.argument_bytes, "parameters and optimizer state are sharded"


@pytest.mark.aot
def test_a_sharded_step_compiles_with_the_tpu_kernels():
    topology = describe("v5e:2x2")
    shape = {"parallel.data": "1", "parallel.fsdp": "4", "data.sequence_length": "1024"}
    blockwise, kernels = (
        compile_step(small_for(topology, **shape, **{"model.attention": name}), topology, optimize=False)
        for name in ("blockwise", "tpu")
    )
    assert kernels.fits
    assert kernels.collectives == blockwise.collectives, "attention stays on its device"


@pytest.mark.aot
def test_a_step_that_does_not_fit_says_so():
    topology = describe("v5e:1x1")
    stats = compile_step(
        small_for(
            topology, **{"data.batch_size": "256", "data.sequence_length": "8192", "model.attention": "reference"}
        ),
        topology,
        optimize=False,
    )
    assert not stats.fits
    assert stats.peak_bytes > 100 * 2**30, "the reference attention's weights alone take 256 * 2 * 8192^2 * 2 bytes"


@pytest.mark.aot
def test_activations_can_be_offloaded_to_the_hosts_memory():
    topology = describe("v5e:1x1")
    sizes = {"model.num_layers": "4", "data.sequence_length": "512", "model.remat": "offload:block_input"}
    stats = compile_step(small_for(topology, **sizes), topology, optimize=False)
    assert stats.host_bytes >= 4 * 2 * 512 * 256 * 2


@pytest.mark.aot
def test_a_step_compiles_for_h200s():
    topology = describe("h200:8")
    assert topology.devices[0].device_kind == "NVIDIA H200"
    config = small_for(topology, **{"parallel.data": "2", "parallel.fsdp": "4"})
    stats = compile_step(config, topology)
    assert stats.fits and sum(stats.collectives.values()) > 0
