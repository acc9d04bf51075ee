"""Optimizers under one contract, built inside the step around their traced hyperparameters.

An optimizer is three parts, in this order:

1. Clipping (`clip`, `clip_norm`): lm/optim/clip.py.
2. A *direction*: an `optax.GradientTransformation` of the gradients, named by `optimizer.name`. It
   knows no learning rate, decay or sign. Layers are stacked on L and every rule is per layer; what is a
   matrix comes from the dimension letters.
3. The update of each parameter: `-lr * multiplier * (mup * direction + decay * parameter)`, with

   - `lr`: `learning_rate`, or `adam_learning_rate` for what Adam updates under `muon`;
   - `multiplier`: the first match of `lr_multipliers`, else 1;
   - `mup`: lm/optim/mup.py, 1 without `model.mup_base_width`;
   - `decay`: `weight_decay` times the first match of `weight_decay_multipliers`, else times 1 for kernels
     and embeddings and 0 for norms and biases. A match decides alone: it can turn decay on for a norm.

| name | kernels inside the blocks | everything else |
|---|---|---|
| `adamw` (Loshchilov and Hutter 2019) | Adam | Adam |
| `muon`, with `muon_normalize` NorMuon | Muon | Adam |
| `adafactor` | Adafactor | Adafactor (embeddings and head factored too) |
| `lion` (Chen et al. 2023) | sign of b1 m + (1 - b1) g, then m with b2 | the same |
| `soap` | SOAP | Adam |
| `schedule_free` (for `schedule = "constant"`) | AdamW whose momentum is an average of its iterates | the same |
| `"package.module:Name"` | one's own | the same |

An optimizer of one's own is called with `optimizer.options` and returns an `optax.GradientTransformation`
that gives the direction, e.g. `optax:scale_by_radam`. It is applied to each layer's parameters alone
(under `vmap`, without the L axis) and to the rest together, so that norms, ranks and shapes are a layer's.
A whole optimizer such as `optax:adamw`, which scales by -lr itself, is not a direction.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from lm.axes import is_decayed, is_matrix
from lm.config import OPTIMIZERS, Config, OptimizerConfig
from lm.errors import ConfigError
from lm.extensions import load_extension
from lm.optim.adafactor import scale_by_adafactor
from lm.optim.clip import clip_by_norm
from lm.optim.muon import scale_by_muon
from lm.optim.mup import direction_factor
from lm.optim.schedule_free import schedule_free
from lm.optim.soap import scale_by_soap
from lm.optim.state import keep_types, per_layer
from lm.tree import map_with_path


class Optimizer(NamedTuple):
    """An optimizer over the parameters that are evaluated and saved."""

    init: Callable[[Any], Any]  # params -> state
    update: Callable[[Any, Any, Any], tuple[Any, Any]]  # (grads, state, params) -> (what to add to params, state)
    training_params: Callable[[Any, Any], Any]  # (params, state) -> where the gradient is to be taken


def build_optimizer(config: Config, hparams: Mapping[str, jax.Array | float]) -> Optimizer:
    """Return the optimizer of a resolved config.

    Args:
      config: names, exponents and multipliers that are fixed at compile time.
      hparams: from `hyperparameters`; may be tracers.

    Raises:
      ConfigError: an optimizer of one's own cannot be loaded, or does not take its options.
    """
    optimizer = config.optimizer
    direction = keep_types(_direction(optimizer, hparams), config.precision.moments)

    def update_rule(path, update, parameter):
        is_adam = optimizer.name == "muon" and not is_matrix(path)
        rate = hparams["adam_learning_rate" if is_adam else "learning_rate"] * lr_multiplier(optimizer, path)
        factor, decay = direction_factor(config, path), decay_multiplier(optimizer, path)
        update = update if factor == 1 else factor * update
        if decay:
            update = update + decay * hparams["weight_decay"] * parameter
        return -rate * update

    transform = optax.chain(
        clip_by_norm(hparams["clip_norm"], optimizer.clip),
        direction,
        optax.stateless(lambda updates, params: map_with_path(update_rule, updates, params)),
    )
    if optimizer.name == "schedule_free":
        transform, training_params = schedule_free(transform, hparams["learning_rate"], hparams["b1"])
        return Optimizer(transform.init, transform.update, training_params)
    return Optimizer(transform.init, transform.update, lambda params, state: params)


def lr_multiplier(config: OptimizerConfig, path: str) -> float:
    """Return the factor of the first pattern in `lr_multipliers` that is found in the path, or 1."""
    return _first_match(config.lr_multipliers, path, 1.0)


def decay_multiplier(config: OptimizerConfig, path: str) -> float:
    """Return the factor of the first pattern in `weight_decay_multipliers`, or 1 for what is decayed and 0 else."""
    return _first_match(config.weight_decay_multipliers, path, float(is_decayed(path)))


def _first_match(multipliers: tuple[tuple[str, float], ...], path: str, otherwise: float) -> float:
    return next((factor for pattern, factor in multipliers if re.search(pattern, path)), otherwise)


def _direction(config: OptimizerConfig, hparams: Mapping[str, jax.Array | float]) -> optax.GradientTransformation:
    b1, b2 = hparams["b1"], hparams["b2"]
    if config.name not in OPTIMIZERS:
        return per_layer(own_direction(config))
    if config.name == "adafactor":
        momentum = b1 if config.adafactor_momentum else None
        return scale_by_adafactor(hparams["adafactor_decay"], hparams["adafactor_clip"], momentum)
    if config.name == "lion":
        return optax.scale_by_lion(b1, b2)
    if config.name == "schedule_free":  # its momentum is the average
        return optax.scale_by_rms(b2, config.epsilon, eps_in_sqrt=False, bias_correction=True)
    adam = optax.scale_by_adam(b1, b2, config.epsilon)  # Kingma and Ba 2015
    if config.name == "adamw":
        return adam
    of_matrices = {
        "muon": lambda: scale_by_muon(
            hparams["muon_momentum"],
            config.muon_iterations,
            scale=config.muon_scale,
            split_heads=config.muon_split_heads,
            neuron_b2=hparams["muon_b2"] if config.muon_normalize else None,
        ),
        "soap": lambda: scale_by_soap(b1, b2, config.epsilon, config.soap_every, config.soap_max_size),
    }[config.name]()
    group = lambda path, _: config.name if is_matrix(path) else "adam"  # noqa: E731
    return optax.partition({"adam": adam, config.name: of_matrices}, lambda tree: map_with_path(group, tree))


def own_direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the transform of an optimizer named "package.module:Name".

    Raises:
      ConfigError: it cannot be loaded, does not take the options, or is not a transform.
    """
    factory = load_extension("optimizer.name", config.name)
    try:
        transform = factory(**dict(config.options))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config.optimizer.options={config.options!r}: {config.name}: {reason}.") from error
    if not (hasattr(transform, "init") and hasattr(transform, "update")):
        raise ConfigError(
            f"config.optimizer.name={config.name!r}: expected a function that returns an "
            f"optax.GradientTransformation, got {type(transform).__name__}."
        )
    return transform
