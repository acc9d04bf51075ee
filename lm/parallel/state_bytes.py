"""Bytes of a training state per device, by ZeRO stage; nothing is allocated."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax

from lm.axes import OPTIMIZER_AXES, PARAMETER_AXES, partition
from lm.config import Config
from lm.model import Transformer
from lm.optim import build_optimizer, hyperparameters, state_letters
from lm.tree import map_with_path

_F32_BYTES = 4


def state_bytes(config: Config, devices: int) -> dict[int, dict[str, int]]:
    """Return stage -> bytes per device of `parameters`, `gradients`, `optimizer`, `average` and `total`.

    ZeRO (Rajbhandari et al. 2020) splits over the devices: stage 0 nothing, 1 the optimizer state (and the
    parameters' moving average), 2 the gradients too, 3 the parameters too. What is not divisible stays
    whole, as it does in training. Activations come on top.

    Args:
      config: resolved, with `vocab_size`.
      devices: how many share one state.
    """
    params = jax.eval_shape(Transformer(config.model, config.precision).init, jax.random.key(0))
    optimizer = build_optimizer(config, hyperparameters(config.optimizer, 0))
    state = jax.eval_shape(optimizer.init, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, "float32"), params))
    # part -> (its arrays, the table that splits them, the stage from which on it is split, bytes of an element)
    parts = {
        "parameters": (params, PARAMETER_AXES, 3, None),
        "gradients": (params, PARAMETER_AXES, 2, _F32_BYTES),  # summed in f32
        "optimizer": (state, OPTIMIZER_AXES, 1, None),
    }
    if config.optimizer.ema_decay is not None:
        parts["average"] = (params, OPTIMIZER_AXES, 1, _F32_BYTES)
    out = {}
    for stage in range(4):
        sizes = {
            name: _bytes(tree, table if stage >= since else {}, devices, itemsize)
            for name, (tree, table, since, itemsize) in parts.items()
        }
        out[stage] = {**sizes, "total": sum(sizes.values())}
    return out


def _bytes(tree: Any, table: Mapping[str, tuple[str, ...]], devices: int, itemsize: int | None) -> int:
    """Return the bytes that one device holds of a tree of shapes; every axis of the table has all devices."""
    mesh = dict.fromkeys(itertools.chain.from_iterable(table.values()), devices)
    sizes: list[int] = []

    def one(path: str, leaf) -> None:
        dims = state_letters(path) or ""
        split = partition(dims, leaf.shape, table, mesh) if len(dims) == leaf.ndim else ()
        pieces = devices ** sum(axes is not None for axes in split)
        sizes.append(math.prod(leaf.shape) * (itemsize or leaf.dtype.itemsize) // pieces)

    map_with_path(one, tree)
    return sum(sizes)
