"""The chunked cross-entropy against the plain one, value and gradients, and the logits that must not exist."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.cross_entropy import cross_entropy

B, T, D, V = 3, 10, 8, 37


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden_BTD = jax.random.normal(keys[0], (B, T, D), dtype)
    head_DV = jax.random.normal(keys[1], (D, V))
    targets_BT = jax.random.randint(keys[2], (B, T), 0, V)
    weights_BT = jax.random.uniform(keys[3], (B, T)) * (jnp.arange(T) > 2).astype(jnp.float32).reshape(1, T)
    return hidden_BTD, head_DV, targets_BT, weights_BT


def plain(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, softcap=None, z_loss=0.0):
    logits_BTV = jnp.einsum("BTD,DV->BTV", hidden_BTD.astype(jnp.float32), head_DV)
    if softcap:
        logits_BTV = softcap * jnp.tanh(logits_BTV / softcap)
    nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], -1)[..., 0]
    z_BT = z_loss * jax.nn.logsumexp(logits_BTV, -1) ** 2
    return grad_scale * jnp.sum((nll_BT + z_BT) * weights_BT), nll_BT


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 7, 30, 1000])  # 7 does not divide 30; 1000 is one chunk
def test_value_losses_per_token_and_gradients_match_the_plain_form(chunk, softcap):
    args = (*inputs(), 0.25)
    loss, nll_BT = cross_entropy(*args, softcap=softcap, chunk=chunk)
    expected, expected_BT = plain(*args, softcap=softcap)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(nll_BT, expected_BT, atol=1e-5)
    ours = jax.grad(lambda *a: 3 * cross_entropy(*a, softcap=softcap, chunk=chunk)[0], (0, 1, 3, 4))(*args)
    theirs = jax.grad(lambda *a: 3 * plain(*a, softcap=softcap)[0], (0, 1, 3, 4))(*args)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_scale_enters_before_rounding_so_that_small_gradients_survive_half_precision():
    """1e-8 is zero in fp16; with the loss scale in `grad_scale` the gradient is not."""
    hidden_BTD, head_DV, targets_BT, weights_BT = inputs(jnp.float16)

    def gradient(scale):
        return jax.grad(lambda h: cross_entropy(h, head_DV, targets_BT, weights_BT, scale)[0])(hidden_BTD)

    assert jnp.abs(gradient(1e-9)).max() == 0
    scaled = gradient(1e-9 * 2.0**24).astype(jnp.float32) / 2.0**24
    expected = jax.grad(lambda h: plain(h, head_DV, targets_BT, weights_BT, 1e-9)[0])(hidden_BTD.astype(jnp.float32))
    np.testing.assert_allclose(scaled, expected, rtol=0.02, atol=1e-13)


def test_the_whole_logits_never_exist():
    args = inputs()

    def step(hidden_BTD, head_DV):
        return jax.grad(lambda h, w: cross_entropy(h, w, *args[2:], 1.0, chunk=5)[0], (0, 1))(hidden_BTD, head_DV)

    text = jax.jit(step).lower(*args[:2]).compile().as_text()
    sizes = {int(np.prod([int(n) for n in dims.split(",")])) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert 5 * V in sizes
    assert B * T * V not in sizes
    assert f"f32[{B},{T},{V}]" not in text


def test_losses_per_token_carry_no_gradient():
    hidden_BTD, *rest = inputs()
    gradient = jax.grad(lambda h: cross_entropy(h, *rest)[1].sum())(hidden_BTD)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("chunk", "softcap"), [(7, None), (1000, 3.0)])
def test_the_z_loss_and_its_gradients_match_the_plain_form_and_leave_the_losses_per_token(chunk, softcap):
    args, options = (*inputs(), 0.25), {"softcap": softcap, "z_loss": 0.1}
    loss, nll_BT, log_z_BT = cross_entropy(*args, **options, chunk=chunk, return_log_z=True)
    expected, expected_BT = plain(*args, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(nll_BT, expected_BT, atol=1e-5)
    assert expected > 1.05 * plain(*args, softcap=softcap)[0]  # enough of it to matter
    z_sum = 0.1 * 0.25 * jnp.sum(log_z_BT**2 * args[3])
    np.testing.assert_allclose(loss - z_sum, plain(*args, softcap=softcap)[0], rtol=1e-5)
    ours = jax.grad(lambda *a: 3 * cross_entropy(*a, **options, chunk=chunk)[0], (0, 1, 3, 4))(*args)
    theirs = jax.grad(lambda *a: 3 * plain(*a, **options)[0], (0, 1, 3, 4))(*args)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=4e-6)
