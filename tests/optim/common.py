"""A few small parameters of every kind, and updates of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.axes import PARAMETERS
from lm.config import Config, apply_overrides, default
from lm.optim import build_optimizer, hyperparameters
from lm.optim.state import flatten, unflatten
from lm.resolve import resolve

SIZES = {"L": 2, "D": 8, "N": 2, "K": 1, "H": 4, "F": 12, "V": 10}
PATHS = (
    "final_norm/scale",
    "head/kernel",
    "layers/attention/query/kernel",
    "layers/attention/query/bias",
    "layers/attention/out/kernel",
    "layers/attention/value_embed/embedding",
    "layers/attention_norm/scale",
    "layers/mlp/up/kernel",
)
KERNELS = tuple(path for path in PATHS if path.startswith("layers/") and path.endswith("kernel"))
INPUT_AXES = {"query": 1, "out": 2, "up": 1}  # of one layer's kernel: how many leading axes are its input


def small_config(**overrides: str) -> Config:
    config = default()
    standard = {"optimizer.clip_norm": "None", "optimizer.weight_decay": "0.0", "optimizer.warmup_steps": "0"}
    apply_overrides(config, list((standard | {f"optimizer.{k}": v for k, v in overrides.items()}).items()))
    return resolve(config)


def parameters(seed: int = 0) -> dict:
    """Random arrays with the letters' sizes."""
    random = np.random.default_rng(seed)
    shapes = {path: tuple(SIZES[letter] for letter in PARAMETERS[path]) for path in PATHS}
    return unflatten({path: jnp.asarray(random.normal(size=shape), jnp.float32) for path, shape in shapes.items()})


def gradients(step: int) -> dict:
    """Gradients of a step: of a different size for each layer and each step."""
    by_layer = lambda a: a * (1 + jnp.arange(a.shape[0], dtype=a.dtype)).reshape((-1,) + (1,) * (a.ndim - 1))  # noqa: E731
    grads = {
        path: by_layer(a) if path.startswith("layers/") else a for path, a in flatten(parameters(100 + step)).items()
    }
    return unflatten({path: 0.1 * (1 + step) * a for path, a in grads.items()})


@functools.cache
def trajectory(config: Config, steps: int) -> tuple[list[dict], list[dict], object]:
    """Return `(updates, training_params, state)` of some steps, as flat dicts by path; parameters move."""

    @jax.jit
    def step(params, state, grads, hparams):
        optimizer = build_optimizer(config, hparams)
        at = optimizer.training_params(params, state)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, updates, at

    params = parameters()
    state = jax.jit(build_optimizer(config, hyperparameters(config.optimizer, 0)).init)(params)
    all_updates, all_points = [], []
    for number in range(steps):
        hparams = {name: jnp.float32(value) for name, value in hyperparameters(config.optimizer, number).items()}
        params, state, updates, at = step(params, state, gradients(number), hparams)
        all_updates.append(flatten(updates))
        all_points.append(flatten(at))
    assert step._cache_size() == 1
    return all_updates, all_points, state


def layers_of(path: str, array) -> list[np.ndarray]:
    """Return a parameter's layers, or the whole parameter where it has none."""
    return list(np.asarray(array)) if path.startswith("layers/") else [np.asarray(array)]


def as_matrix(path: str, array: np.ndarray) -> np.ndarray:
    """Return one layer's kernel or embedding as `[in, out]`; vectors (norms, biases) as they are, flat."""
    *_, name, kind = path.split("/")
    if kind == "embedding" or path == "head/kernel":
        return array.reshape(array.shape[0], -1)
    if kind == "kernel":
        return array.reshape(int(np.prod(array.shape[: INPUT_AXES[name]])), -1)
    return array.reshape(-1)
