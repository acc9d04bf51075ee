"""The recommended flags compile: a compiler aborts the process at one that it does not know."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from lm.parallel import flags

# ZeRO 3 by hand: each layer's parameters are gathered in the loop, their gradients scattered.
PROGRAM = """
import hashlib, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lm.parallel.topology import describe

mesh = Mesh(np.array(describe(sys.argv[1]).devices), ("x",))
kernels = jax.ShapeDtypeStruct((4, 1024, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "x")))
rows = jax.ShapeDtypeStruct((2048, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P("x")))

def step(kernels, rows):
    layer = lambda rows, kernel: (jnp.tanh(rows @ jax.lax.all_gather(kernel, "x", tiled=True)), None)
    loss = lambda kernels: jnp.sum(jax.lax.scan(jax.checkpoint(layer), rows, kernels)[0].astype(jnp.float32))
    return kernels - 0.01 * jax.grad(loss)(kernels)

step = jax.shard_map(step, mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P(None, "x"), check_vma=False)
text = jax.jit(step).lower(kernels, rows).compile().as_text()
print(hashlib.sha256(re.sub(r"metadata=\\{[^}]*\\}", "", text).encode()).hexdigest())
"""


def program(topology: str, platform: str, given: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", flags.VARIABLES[platform]: given}
    return subprocess.run([sys.executable, "-c", PROGRAM, topology], env=environment, capture_output=True, text=True)


def installed(platform: str) -> bool:
    package, version = flags.TESTED[platform]
    try:
        return importlib.metadata.version(package).startswith(version)
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "platform"), [("v5e:2x4", "tpu"), ("v5p:2x2x1", "tpu"), ("v6e:2x4", "tpu"), ("h200:8", "gpu")]
)
def test_the_recommended_flags_are_known_to_the_compiler(topology, platform):
    if not installed(platform):
        pytest.skip(f"the flags are for {flags.TESTED[platform]}")
    done = program(topology, platform, flags.with_recommended("", platform))
    assert done.returncode == 0, done.stderr
    unknown = program(topology, platform, "--xla_no_such_flag=true")
    assert unknown.returncode != 0, "else this test could not fail"


@pytest.mark.aot
def test_gpus_get_another_program_and_tpus_the_one_that_they_have_by_default():
    if not (installed("tpu") and installed("gpu")):
        pytest.skip(f"the flags are for {flags.TESTED}")
    for topology, platform, is_default in (("v5e:2x4", "tpu", True), ("h200:8", "gpu", False)):
        plain, flagged = (program(topology, platform, f) for f in ("", flags.with_recommended("", platform)))
        assert plain.returncode == flagged.returncode == 0, plain.stderr + flagged.stderr
        assert (plain.stdout == flagged.stdout) == is_default
