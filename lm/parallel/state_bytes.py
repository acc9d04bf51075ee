"""Bytes of a training state per device, by ZeRO stage; nothing is allocated."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from lm.axes import OPTIMIZER_AXES, PARAMETER_AXES, PARAMETERS, partition
from lm.config import Config
from lm.model import Transformer
from lm.optim import build_optimizer, hyperparameters, state_letters
from lm.tree import map_with_path

_GRADIENT_BYTES = 4  # gradients are summed in f32


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

    def total(tree: Any, table: Mapping | None, letters, itemsize: int | None = None) -> int:
        sizes: list[int] = []

        def one(path: str, leaf) -> None:
            dims = letters(path, leaf)
            split = partition(dims, leaf.shape, table, dict.fromkeys(_axes(table), devices)) if table and dims else ()
            parts = devices ** sum(axes is not None for axes in split)
            sizes.append(math.prod(leaf.shape) * (itemsize or leaf.dtype.itemsize) // parts)

        map_with_path(one, tree)
        return sum(sizes)

    of_parameter = lambda path, leaf: PARAMETERS[path]  # noqa: E731
    of_state = lambda path, leaf: state_letters(path) if len(state_letters(path) or "") == leaf.ndim else None  # noqa: E731
    out = {}
    for stage in range(4):
        shard = lambda table, since: table if stage >= since else None  # noqa: B023, E731
        parts = {
            "parameters": total(params, shard(PARAMETER_AXES, 3), of_parameter),
            "gradients": total(params, shard(PARAMETER_AXES, 2), of_parameter, _GRADIENT_BYTES),
            "optimizer": total(state, shard(OPTIMIZER_AXES, 1), of_state),
        }
        if config.optimizer.ema_decay is not None:
            parts["average"] = total(params, shard(OPTIMIZER_AXES, 1), of_parameter, 4)
        out[stage] = {**parts, "total": sum(parts.values())}
    return out


def _axes(table: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {axis for axes in table.values() for axis in axes}
