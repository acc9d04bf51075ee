"""The optimizer as an optax chain, built inside the step around its traced hyperparameters."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from lm.axes import is_decayed, is_matrix
from lm.config import OptimizerConfig
from lm.optim.muon import scale_by_muon
from lm.tree import map_with_path


def build_optimizer(config: OptimizerConfig, hparams: Mapping[str, jax.Array | float]) -> optax.GradientTransformation:
    """Return clipping, then AdamW or Muon with AdamW, then decoupled weight decay and learning rates.

    Args:
      config: names, exponents and multipliers that are fixed at compile time.
      hparams: from `hyperparameters`; may be tracers.

    The update of a parameter is `-lr * multiplier * (direction + weight_decay * parameter)`;
    `lr` is `adam_learning_rate` for what AdamW updates under `muon`, else `learning_rate`.
    """
    adam = optax.scale_by_adam(hparams["b1"], hparams["b2"], config.epsilon)  # Kingma and Ba 2015
    direction = adam
    if config.name == "muon":
        muon = scale_by_muon(hparams["muon_momentum"], config.muon_iterations)
        direction = optax.partition({"adam": adam, "muon": muon}, lambda tree: map_with_path(_group, tree))

    def update_rule(path, update, parameter):
        is_adam = config.name == "muon" and not is_matrix(path)
        rate = hparams["adam_learning_rate" if is_adam else "learning_rate"] * lr_multiplier(config, path)
        if is_decayed(path):
            update = update + hparams["weight_decay"] * parameter
        return -rate * update

    return optax.chain(
        _clip_by_global_norm(hparams["clip_norm"]),
        direction,
        optax.stateless(lambda updates, params: map_with_path(update_rule, updates, params)),
    )


def lr_multiplier(config: OptimizerConfig, path: str) -> float:
    """Return the factor of the first pattern in `lr_multipliers` that is found in the path, or 1."""
    for pattern, factor in config.lr_multipliers:
        if re.search(pattern, path):
            return factor
    return 1.0


def _group(path: str, _leaf) -> str:
    return "muon" if is_matrix(path) else "adam"


def _clip_by_global_norm(limit) -> optax.GradientTransformation:
    """Scale all gradients by min(1, limit / global norm) (Pascanu et al. 2013); infinity: no clipping."""

    def clip(updates, _params):
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-12))
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates)

    return optax.stateless(clip)
