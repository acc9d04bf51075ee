"""Bytes of a training state per device, by ZeRO stage; nothing is allocated."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax

from lm.axes import SHARDED_AXES, gradient_axes, optimizer_axes, parameter_axes, partition
from lm.config import Config, ParallelConfig
from lm.model import Transformer
from lm.optim import build_optimizer, hyperparameters, state_letters
from lm.tree import map_with_path

_F32_BYTES = 4


def held_bytes(config: Config, mesh: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes that one device holds of `parameters`, `gradients`, `optimizer` and `average`, and `total`.

    Sharded by the tables of `lm/axes.py` at the config's ZeRO stage (Rajbhandari et al. 2020: 0 nothing, 1 the
    optimizer state and the parameters' moving average, 2 the gradients too, 3 the parameters too). What is not
    divisible stays whole, as it does in training. Activations come on top.

    Args:
      config: resolved, with `vocab_size`.
      mesh: axis -> size.
    """
    return dict(_held(_without_parallel(config), config.parallel.zero, tuple(mesh.items())))


@functools.lru_cache(maxsize=4096)
def _held(config: Config, zero: int, axes: tuple[tuple[str, int], ...]) -> dict[str, int]:
    (params, state), mesh = _shapes(config), dict(axes)
    # part -> (its arrays, its table, bytes of an element)
    parts = {
        "parameters": (params, parameter_axes(zero), None),
        "gradients": (params, gradient_axes(zero), _F32_BYTES),  # summed in f32
        "optimizer": (state, optimizer_axes(zero), None),
    }
    if config.optimizer.ema_decay is not None:
        parts["average"] = (params, optimizer_axes(zero), _F32_BYTES)
    sizes = {name: _bytes(*part, mesh) for name, part in parts.items()}
    return {**sizes, "total": sum(sizes.values())}


def state_bytes(config: Config, devices: int) -> dict[int, dict[str, int]]:
    """Return stage -> `held_bytes` of a config whose state so many devices share, by ZeRO alone."""
    mesh = dict.fromkeys(SHARDED_AXES["D"], devices)
    stages = {zero: dataclasses.replace(config.parallel, zero=zero) for zero in range(4)}
    return {zero: held_bytes(dataclasses.replace(config, parallel=part), mesh) for zero, part in stages.items()}


@functools.lru_cache(maxsize=8)
def _shapes(config: Config) -> tuple[Any, Any]:
    params = jax.eval_shape(Transformer(config.model, config.precision).init, jax.random.key(0))
    optimizer = build_optimizer(config, hyperparameters(config.optimizer, 0))
    return params, jax.eval_shape(
        optimizer.init, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, "float32"), params)
    )


def _without_parallel(config: Config) -> Config:
    """Drop what does not change a shape, so that a search over it traces once."""
    model = dataclasses.replace(config.model, remat="none")
    optimizer = dataclasses.replace(config.optimizer, accumulation_steps=1)
    return dataclasses.replace(config, model=model, optimizer=optimizer, parallel=ParallelConfig())


def _bytes(tree: Any, table: Mapping, itemsize: int | None, mesh: Mapping[str, int]) -> int:
    """Return the bytes that one device holds of a tree of shapes."""
    sizes: list[int] = []

    def one(path: str, leaf) -> None:
        dims = state_letters(path) or ""
        split = partition(dims, leaf.shape, table, mesh) if len(dims) == leaf.ndim else ()
        pieces = math.prod(mesh[axis] for axes in split for axis in axes or ())
        sizes.append(math.prod(leaf.shape) * (itemsize or leaf.dtype.itemsize) // pieces)

    map_with_path(one, tree)
    return sum(sizes)
