"""A small training step and batches for the tests of training."""

import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh

from lm.axes import MESH_AXES
from lm.config import Config, apply_overrides, default
from lm.parallel.mesh import make_mesh, place_batch, replicated
from lm.resolve import resolve
from lm.train.step import BuiltStep, build_step, step_scalars

V, B, T = 96, 16, 12


def small_config(devices: int = 1, fsdp: int = 1, **overrides: str) -> Config:
    config = default()
    small = {
        "model.num_layers": "2",
        "model.d_model": "64",
        "model.num_heads": "4",
        "model.vocab_size": str(V),
        "data.sequence_length": str(T),
        "data.batch_size": str(B),
        "optimizer.warmup_steps": "0",
        "parallel.fsdp": str(fsdp),
    }
    apply_overrides(config, list((small | overrides).items()))
    return resolve(config, devices=devices)


def mesh_of(devices: int, fsdp: int) -> Mesh:
    return make_mesh(small_config(devices, fsdp).parallel, jax.devices()[:devices])


@functools.cache
def built_step(config: Config) -> BuiltStep:
    devices = math.prod(getattr(config.parallel, axis) for axis in MESH_AXES)
    return build_step(config, make_mesh(config.parallel, jax.devices()[:devices]))


def numpy_batch(step: int) -> dict[str, np.ndarray]:
    """A global batch whose rows have very different numbers of tokens that count."""
    random = np.random.default_rng(step)
    tokens = random.integers(0, V, (B, T + 1)).astype(np.int32)
    weights = (np.arange(T)[None, :] < random.integers(1, T + 1, (B, 1))).astype(np.float32)
    return {
        "inputs_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "weights_BT": weights,
        "segment_ids_BT": np.where(np.arange(T) < 5, 1, 2)[None].repeat(B, 0).astype(np.int32),
        "positions_BT": np.where(np.arange(T) < 5, np.arange(T), np.arange(T) - 5)[None].repeat(B, 0).astype(np.int32),
        "target_bytes_BT": random.integers(1, 5, (B, T)).astype(np.int32),
    }


def fake_batch(mesh: Mesh, step: int, micro: int = 1) -> dict[str, jax.Array]:
    batch = numpy_batch(step)
    return place_batch(
        mesh, (micro, B // micro, T), lambda rows, columns: {name: a[rows][:, columns] for name, a in batch.items()}
    )


def scalars(built: BuiltStep, step: int, config: Config | None = None) -> dict[str, jax.Array]:
    return jax.device_put(step_scalars(config or small_config(), step), replicated(built.mesh))


def run_steps(built: BuiltStep, steps: int, config: Config | None = None, micro: int = 1) -> list[float]:
    state, losses = built.init(), []
    for step in range(steps):
        # One batch over and over, so that the loss must fall.
        state, metrics = built.step(state, fake_batch(built.mesh, 0, micro), scalars(built, step, config))
        losses.append(float(metrics["loss"]))
    return losses
