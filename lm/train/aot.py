"""The training step compiled ahead of time for hardware that is not here."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm.axes import ACTIVATION_AXES
from lm.config import Config
from lm.parallel.mesh import named_sharding, replicated
from lm.parallel.topology import CompiledStats, Topology, compile_for, topology_mesh
from lm.train.step import build_step, step_scalars

# A batch's arrays, as `lm.data.rows.fill_rows` builds them.
_BATCH = {
    "inputs_BT": jnp.int32,
    "targets_BT": jnp.int32,
    "weights_BT": jnp.float32,
    "segment_ids_BT": jnp.int32,
    "positions_BT": jnp.int32,
    "target_bytes_BT": jnp.int32,
}


def abstract_inputs(config: Config, mesh: Mesh) -> tuple[dict, dict]:
    """Return the batch and the hyperparameters that a step takes beside its state, as sharded shapes."""
    micro = config.optimizer.accumulation_steps
    shape = (micro, config.data.batch_size // micro, config.data.sequence_length)
    rows, whole = named_sharding(mesh, "ABT", shape, ACTIVATION_AXES), replicated(mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in _BATCH.items()}
    scalars = step_scalars(config, 0)
    return batch, {name: jax.ShapeDtypeStruct((), value.dtype, sharding=whole) for name, value in scalars.items()}


def compile_step(config: Config, topology: Topology, *, optimize: bool = True) -> CompiledStats:
    """Compile a config's training step for a topology: its memory per device and its collectives.

    Args:
      config: resolved for `topology.num_devices` and `topology.capabilities`, with its `vocab_size` filled in.
      topology: from `lm.parallel.topology.describe`.
      optimize: see `compile_for`.
    """
    built = build_step(config, topology_mesh(topology, config.parallel))
    return compile_for(topology, built.step, built.state, *abstract_inputs(config, built.mesh), optimize=optimize)
