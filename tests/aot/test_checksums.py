"""The checksums of a sharded state, compiled for a TPU slice: no copies, and a few words between chips."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.checkpoint import checksum
from lm.config import ParallelConfig
from lm.parallel.mesh import make_mesh
from lm.parallel.topology import describe
from tests.parallel.common import collectives


@pytest.mark.aot
@pytest.mark.parametrize("memory", [None, "pinned_host"])
def test_chips_copy_no_array_and_send_a_few_words(memory):
    mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2), describe("v5e:2x4").devices)

    def of(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec), memory_kind=memory)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    arrays = [
        of((12, 768, 3072), "float32", None, "fsdp", "tensor"),
        of((50304, 768), "bfloat16", "tensor", "fsdp"),
        of((12, 768), "float32", None, "fsdp"),
        of((), "int32"),
    ]
    compiled = checksum._program(tuple(array.sharding for array in arrays)).lower(arrays).compile()
    sent = collectives(compiled.as_text())
    assert sent and all(np.prod(shape) <= 8 for _, shape in sent), sent
    if memory is None:  # else the arrays themselves come to the chip
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 20
