"""What bf16 saves: temporaries of a 1B model's training step in bf16 and in f32, compiled for TPUs.

    python -m experiments.benchmarks.precision                   # needs the extra tpu; no hardware
    python -m experiments.benchmarks.precision --fast            # XLA's O0: a few times faster, less fusion

Llama 3.2 1B's shape (L 16, D 2,048, N 32, K 8, H 64, F 8,192) with a vocabulary of 32,768, tied: 1.04B parameters.
64 rows of 1,024 tokens on a v5e:4x4, parameters sharded over all 16 chips (`fsdp`), so 4 rows a chip; remat `none`;
f32 parameters in both; attention by the Pallas kernels. Matmuls in f32 are f32's: the TPU's default would round their
operands to bf16. Temporaries are what is alive at one time beside the arguments, less the f32 gradients.

Measured with jax 0.10.2 and libtpu 0.0.42.1: 5,726 MiB in bf16, 10,849 MiB in f32, a share of 0.528.
"""

import argparse
import json
import os

TOPOLOGY, ROWS = "v5e:4x4", 64


def config_of(compute: str, topology, *, rows: int = ROWS, length: int = 1024, remat: str = "none"):
    """Return the resolved config in a compute type."""
    from lm.config import default
    from lm.presets import preset
    from lm.resolve import resolve

    config = default()
    config.model.update(preset("llama3.2_1b"))
    config.model.vocab_size = 32768
    config.model.remat = remat
    config.data.sequence_length, config.data.batch_size = length, rows
    config.precision.compute = compute
    config.parallel.data, config.parallel.fsdp = 1, topology.num_devices
    return resolve(config, devices=topology.num_devices, capabilities=topology.capabilities)


def temporaries(config, topology, *, optimize: bool = True) -> int:
    """Return the bytes that a device holds beside the arguments and the f32 gradients."""
    import math

    import jax

    from lm.axes import SHARDED_AXES
    from lm.parallel.mesh import parameter_shardings
    from lm.parallel.topology import topology_mesh
    from lm.train.aot import compile_step
    from lm.train.step import build_model

    mesh = topology_mesh(topology, config.parallel)
    shapes = jax.eval_shape(build_model(config, mesh).init, jax.random.key(0))
    shards = jax.tree.map(lambda a, s: s.shard_shape(a.shape), shapes, parameter_shardings(mesh, shapes, SHARDED_AXES))
    gradients = 4 * sum(math.prod(shape) for shape in jax.tree.leaves(shards, is_leaf=lambda x: isinstance(x, tuple)))
    return compile_step(config, topology, optimize=optimize).temporary_bytes - gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default=TOPOLOGY)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--fast", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from lm.parallel.topology import describe

    topology, out = describe(args.topology), {}
    for compute in ("bfloat16", "float32"):
        config = config_of(compute, topology, rows=args.rows, length=args.length, remat=args.remat)
        out[compute] = temporaries(config, topology, optimize=not args.fast)
        print(json.dumps({"compute": compute, "temporaries": out[compute]}), flush=True)
    print(json.dumps({"bf16's share": out["bfloat16"] / out["float32"]}))


if __name__ == "__main__":
    main()
