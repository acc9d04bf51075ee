"""The mixture's experts against a loop over them, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.activations import activate
from lm.kernels.experts import experts

B, T, D, F, E, k = 2, 37, 16, 24, 5, 2


def inputs(seed: int = 0, activation: str = "swiglu"):
    keys = jax.random.split(jax.random.key(seed), 6)
    x_BTD = jax.random.normal(keys[0], (B, T, D))
    # Uneven on purpose: most tokens want expert 0, none wants the last one.
    scores_BTE = jax.random.normal(keys[1], (B, T, E)) + jnp.array([2.0, 0, 0, 0, -100]).reshape(1, 1, E)
    gates_BTk, ids_BTk = jax.lax.top_k(jax.nn.softmax(scores_BTE), k)
    shapes = {"up": (E, D, F), "gate": (E, D, F), "down": (E, F, D)}
    if activation not in ("swiglu", "geglu"):
        del shapes["gate"]
    kernels = {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys[2:], shapes.items(), strict=False)
    }
    return x_BTD, ids_BTk, gates_BTk, kernels


def loop(x_BTD, ids_BTk, gates_BTk, kernels, activation):
    """Every expert over every token, masked: what dispatching by sorting must equal."""
    y_BTD = jnp.zeros_like(x_BTD)
    for e in range(E):
        gate = x_BTD @ kernels["gate"][e] if "gate" in kernels else None
        out_BTD = activate(activation, x_BTD @ kernels["up"][e], gate) @ kernels["down"][e]
        weight_BT = jnp.sum(jnp.where(ids_BTk == e, gates_BTk, 0), -1)
        y_BTD = y_BTD + weight_BT[:, :, None] * out_BTD
    return y_BTD


@pytest.mark.parametrize(
    ("implementation", "activation"), [("ragged", "swiglu"), ("blocked", "swiglu"), ("blocked", "relu2")]
)
def test_output_and_gradients_equal_a_loop_over_the_experts(implementation, activation):
    x_BTD, ids_BTk, gates_BTk, kernels = inputs(activation=activation)

    def ours(x_BTD, gates_BTk, kernels):
        y_BTD, taken_E = experts(
            x_BTD, ids_BTk, gates_BTk, kernels, activation=activation, implementation=implementation
        )
        return jnp.sum(jnp.sin(y_BTD)), (y_BTD, taken_E)

    def theirs(x_BTD, gates_BTk, kernels):
        y_BTD = loop(x_BTD, ids_BTk, gates_BTk, kernels, activation)
        return jnp.sum(jnp.sin(y_BTD)), y_BTD

    (_, (y_BTD, taken_E)), got = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(x_BTD, gates_BTk, kernels)
    (_, expected_BTD), expected = jax.jit(jax.value_and_grad(theirs, (0, 1, 2), has_aux=True))(
        x_BTD, gates_BTk, kernels
    )
    np.testing.assert_allclose(y_BTD, expected_BTD, rtol=2e-5, atol=2e-5 * float(jnp.abs(expected_BTD).max()))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * float(jnp.abs(b).max()))
    np.testing.assert_array_equal(taken_E, np.bincount(np.asarray(ids_BTk).reshape(-1), minlength=E))
    assert int(taken_E[-1]) == 0, "an expert without tokens must be among the cases"


@pytest.mark.parametrize("implementation", [pytest.param("ragged", marks=pytest.mark.slow), "blocked"])
def test_every_token_gets_bit_for_bit_what_its_experts_give_it_alone(implementation):
    """Integers, so that no order of summation rounds: equality is exact."""
    x_BTD, ids_BTk, _, kernels = jax.tree.map(
        lambda a: jnp.round(a) if a.dtype == jnp.float32 else a, inputs(activation="relu2")
    )
    gates_BTk = jnp.ones(ids_BTk.shape)
    y_BTD, _ = experts(x_BTD, ids_BTk, gates_BTk, kernels, activation="relu2", implementation=implementation)
    np.testing.assert_array_equal(y_BTD, loop(x_BTD, ids_BTk, gates_BTk, kernels, "relu2"))


def test_padding_goes_nowhere_and_a_capacity_drops_the_last_comers():
    x_BTD, ids_BTk, gates_BTk, kernels = inputs()
    padded = ids_BTk.at[:, 30:].set(-1)
    y_BTD, taken_E = experts(x_BTD, padded, gates_BTk, kernels, activation="swiglu", implementation="blocked")
    assert int(taken_E.sum()) == B * 30 * k
    np.testing.assert_array_equal(y_BTD[:, 30:], 0)
    whole_BTD, _ = experts(x_BTD, ids_BTk, gates_BTk, kernels, activation="swiglu", implementation="blocked")
    np.testing.assert_array_equal(y_BTD[:, :30], whole_BTD[:, :30])

    limit = int(np.ceil(0.5 * B * T * k / E))
    capped_BTD, taken_E = experts(
        x_BTD, ids_BTk, gates_BTk, kernels, activation="swiglu", capacity=0.5, implementation="blocked"
    )
    demand_E = np.bincount(np.asarray(ids_BTk).reshape(-1), minlength=E)
    np.testing.assert_array_equal(taken_E, np.minimum(demand_E, limit))
    assert demand_E.max() > limit
    # The first tokens find room everywhere; a late one loses what its full expert would have added.
    np.testing.assert_array_equal(capped_BTD[0, :3], whole_BTD[0, :3])
    places = {e: [] for e in range(E)}
    for token, chosen in enumerate(np.asarray(ids_BTk).reshape(B * T, k)):
        for j, e in enumerate(chosen):
            places[int(e)].append((token, j))
    kept_gates = np.zeros((B * T, k), np.float32)
    for taken in places.values():
        for token, j in taken[:limit]:
            kept_gates[token, j] = np.asarray(gates_BTk).reshape(B * T, k)[token, j]
    expected = loop(x_BTD, ids_BTk, jnp.asarray(kept_gates).reshape(B, T, k), kernels, "swiglu")
    np.testing.assert_allclose(capped_BTD, expected, atol=1e-4)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="ragged or blocked"):
        experts(*inputs(), activation="swiglu", implementation="dense")
