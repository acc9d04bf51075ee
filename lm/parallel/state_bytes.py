"""Bytes of a training state per device, by ZeRO stage; nothing is allocated."""

import math
from typing import Any

import jax

from lm.axes import SHARDED_AXES, partition
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
    # part -> (its arrays, the stage from which on it is split, bytes of an element)
    parts = {
        "parameters": (params, 3, None),
        "gradients": (params, 2, _F32_BYTES),  # summed in f32
        "optimizer": (state, 1, None),
    }
    if config.optimizer.ema_decay is not None:
        parts["average"] = (params, 1, _F32_BYTES)
    out = {}
    for stage in range(4):
        sizes = {
            name: _bytes(tree, devices if stage >= since else 1, itemsize)
            for name, (tree, since, itemsize) in parts.items()
        }
        out[stage] = {**sizes, "total": sum(sizes.values())}
    return out


def _bytes(tree: Any, devices: int, itemsize: int | None) -> int:
    """Return the bytes that one device holds of a tree of shapes that so many devices share."""
    mesh = dict.fromkeys(SHARDED_AXES["D"], devices)
    sizes: list[int] = []

    def one(path: str, leaf) -> None:
        dims = state_letters(path) or ""
        split = partition(dims, leaf.shape, SHARDED_AXES, mesh) if len(dims) == leaf.ndim else ()
        pieces = devices ** sum(axes is not None for axes in split)
        sizes.append(math.prod(leaf.shape) * (itemsize or leaf.dtype.itemsize) // pieces)

    map_with_path(one, tree)
    return sum(sizes)
