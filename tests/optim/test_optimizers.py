"""One update of each optimizer against a reference that goes layer by layer, matrix by matrix, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import BIASES, Config, OptimizerConfig
from lm.optim import build_optimizer, hyperparameters
from lm.optim.muon import coefficients, orthogonalize
from lm.tree import map_with_path
from tests.model.common import small_model

# How each kernel of one layer is a matrix: the number of leading axes that are its input.
INPUT_AXES = {"query": 1, "key": 1, "value": 1, "out": 2, "up": 1, "gate": 1, "down": 1}


def parameters_and_gradients():
    model = small_model(
        **{
            "model.num_kv_heads": "2",
            "model.tie_embeddings": "False",
            "model.norm": "layernorm",
            "model.bias": str(BIASES),
        }
    )
    params = jax.jit(model.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    grads = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return params, jax.tree.unflatten(tree, grads)


def one_update(config, steps=1):
    params, grads = parameters_and_gradients()
    optimizer = build_optimizer(Config(optimizer=config), hyperparameters(config, 10))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for number in range(steps):
        scaled = jax.tree.map(lambda g, number=number: g * (1 + number), grads)
        updates, state = update(scaled, state, params)
    return params, grads, updates


def adam_direction(gradients, config):
    m = v = 0
    for g in gradients:
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g**2
    return (m / (1 - config.b1 ** len(gradients))) / (np.sqrt(v / (1 - config.b2 ** len(gradients))) + config.epsilon)


def muon_direction(gradients, config):
    """One layer's matrix `[in, out]`."""
    m = 0
    for g in gradients:
        m = config.muon_momentum * m + (1 - config.muon_momentum) * g
    x = config.muon_momentum * m + (1 - config.muon_momentum) * gradients[-1]
    transpose = x.shape[0] > x.shape[1]
    x = x.T if transpose else x
    x = x / np.linalg.norm(x)
    for a, b, c in coefficients(config.muon_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if transpose else x
    return 0.2 * np.sqrt(max(x.shape)) * x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [1, 3])
def test_one_update_against_a_per_layer_reference(name, steps):
    config = OptimizerConfig(
        name=name, learning_rate=0.01, adam_learning_rate=0.003, weight_decay=0.1, clip_norm=None, schedule="constant",
        warmup_steps=0, lr_multipliers=(("mlp/up", 0.5), ("mlp", 2.0)),
    )  # fmt: skip
    params, grads, updates = one_update(config, steps)

    def check(path, parameter, gradient, update):
        parts = path.split("/")
        is_block_kernel = parts[0] == "layers" and parts[-1] == "kernel"
        muon = name == "muon" and is_block_kernel
        rate = 0.003 if name == "muon" and not is_block_kernel else 0.01
        rate *= 0.5 if "mlp/up" in path else 2.0 if "mlp" in path else 1.0
        decay = 0.1 if parts[-1] in ("kernel", "embedding") else 0.0
        arrays = [np.asarray(x, np.float64) for x in (parameter, gradient, update)]
        layers = zip(*arrays, strict=True) if parts[0] == "layers" else [arrays]
        for p, g, u in layers:
            history = [g * (1 + number) for number in range(steps)]
            if muon:
                cut = INPUT_AXES[parts[-2]]
                shape = (int(np.prod(g.shape[:cut])), -1)
                direction = muon_direction([h.reshape(shape) for h in history], config).reshape(g.shape)
            else:
                direction = adam_direction(history, config)
            np.testing.assert_allclose(u, -rate * (direction + decay * p), rtol=2e-4, atol=2e-6, err_msg=path)

    map_with_path(check, params, grads, updates)


def test_muon_of_one_matrix_is_optaxs_muon_of_that_matrix():
    """optax decides by rank, so it can only be asked about one matrix at a time."""
    gradient = jax.random.normal(jax.random.key(0), (48, 80))
    dimensions = {"w": optax.contrib.MuonDimensionNumbers()}
    reference = optax.contrib.scale_by_muon(jnp.array(coefficients(5)), weight_dimension_numbers=dimensions)
    expected, _ = reference.update({"w": gradient}, reference.init({"w": gradient}), {"w": gradient})
    np.testing.assert_allclose(orthogonalize(gradient[None], 5)[0], expected["w"], atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 32, 96), (2, 96, 32)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    gradient = jax.random.normal(jax.random.key(0), shape)
    values = np.linalg.svd(np.asarray(orthogonalize(gradient, 5)), compute_uv=False)
    assert values.min() > 0.8
    assert values.max() < 1.2


@pytest.mark.slow
def test_clipping_scales_all_gradients_by_one_factor():
    config = OptimizerConfig(
        name="adamw", b1=0.0, b2=0.0, epsilon=1e6, weight_decay=0.0, warmup_steps=0, learning_rate=1.0
    )
    _, grads, updates = one_update(config)  # with this epsilon the update is linear in the gradient
    norm = float(optax.tree.norm(grads))
    assert norm > 1
    ratio = jax.tree.map(lambda u, g: u / g, updates, grads)
    for leaf in jax.tree.leaves(ratio):
        np.testing.assert_allclose(leaf, -config.learning_rate * 0.999 / norm / 1e6, rtol=2e-3)


def test_a_second_learning_rate_compiles_nothing():
    config = OptimizerConfig(name="muon")
    params, grads = parameters_and_gradients()
    state = build_optimizer(Config(optimizer=config), hyperparameters(config, 0)).init(params)

    @jax.jit
    def update(state, hparams):
        return build_optimizer(Config(optimizer=config), hparams).update(grads, state, params)[1]

    for step in range(3):
        hparams = {name: jnp.float32(value) for name, value in hyperparameters(config, step).items()}
        state = update(state, hparams)
    assert update._cache_size() == 1
