"""Stochastic rounding to bf16: exact where it can be, right on average where it cannot."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lm.train.rounding import apply_updates, stochastic_round

BF16_MAX = np.float32(ml_dtypes.finfo(jnp.bfloat16).max)
DRAWS = 20_000


@jax.jit
def rounded(x, seed):
    return stochastic_round(x, jax.random.key(seed)).astype(jnp.float32)


def test_the_mean_of_many_roundings_is_the_value_and_each_is_a_neighbour():
    x = np.array([1.001, -1.001, 3.3e-5, -7.77e20, 0.999, 255.9], np.float32)
    values = np.asarray(rounded(np.tile(x, (DRAWS, 1)), 0), np.float64)
    low = (x.view(np.uint32) >> 16 << 16).view(np.float32).astype(np.float64)
    high = ((x.view(np.uint32) >> 16) + 1 << 16).view(np.float32).astype(np.float64)
    assert np.all((values == low) | (values == high))
    assert np.all((values == low).any(0) & (values == high).any(0))
    sigma = np.sqrt((x - low) * (high - x) / DRAWS)
    np.testing.assert_array_less(np.abs(values.mean(0) - x), 4 * sigma)


def test_what_bf16_holds_stays_and_nothing_becomes_infinite():
    row = np.array([0.0, -0.0, 1.0, -2.5, 2.0**-126, BF16_MAX, -BF16_MAX, np.inf, -np.inf, np.nan], np.float32)
    exact = np.tile(row, (DRAWS // 10, 1))
    np.testing.assert_array_equal(rounded(exact, 0), exact)
    beyond = np.full((DRAWS // 10, 10), -np.finfo(np.float32).max)
    np.testing.assert_array_equal(rounded(beyond, 0), -BF16_MAX)


def test_tiny_updates_survive_on_average_where_rounding_to_nearest_loses_them():
    updates, one = {"a": np.full(4096, 1e-4, np.float32)}, ml_dtypes.bfloat16(1)
    assert (np.float32(one) + updates["a"][0]).astype(one.dtype) == one
    step, params = jax.jit(lambda p, key: apply_updates(p, updates, key)), {"a": np.full(4096, one)}
    for number in range(50):
        params = step(params, jax.random.key(number))
    assert params["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(params["a"], np.float64).mean(), 1 + 50e-4, atol=4e-4)


def test_each_leaf_and_each_key_draws_its_own_numbers_and_the_same_key_the_same():
    params = {name: np.ones(512, jnp.bfloat16) for name in "ab"}
    apply = jax.jit(lambda key: apply_updates(params, {name: jnp.full(512, 2e-3) for name in "ab"}, key))
    once, again, other = (jax.device_get(apply(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once["a"], again["a"])
    assert np.any(once["a"] != once["b"]) and np.any(once["a"] != other["a"])
