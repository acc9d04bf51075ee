"""Float8 matmuls, emulated: equal to matmuls of the rounded tensors, near to those of the tensors themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.float8 import BACKWARD, FORWARD, float8_einsum, quantize
from lm.kernels.linear import linear

SHAPES = {"B": 3, "T": 16, "D": 32, "N": 2, "H": 8, "F": 48, "E": 3}


def operands(spec: str) -> list[np.ndarray]:
    """Return an activation, a kernel and an incoming gradient of very different magnitudes."""
    inputs, out = spec.split("->")
    draw, letters = np.random.default_rng(0), (*inputs.split(","), out)
    shapes = [[SHAPES[c] for c in part] for part in letters]
    return [
        (scale * draw.normal(size=shape)).astype(np.float32)
        for scale, shape in zip((3, 0.02, 1e-6), shapes, strict=True)
    ]


def rounded(x: np.ndarray, dtype) -> np.ndarray:
    """The same rounding in numpy."""
    scale = np.abs(x).max() / np.float32(jnp.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(np.float32) * scale


def value_and_gradients(function, x, kernel, g):
    out, vjp = jax.vjp(function, x, kernel)
    return out, *vjp(g.astype(out.dtype))


@pytest.mark.parametrize(("dtype", "bits"), [(FORWARD, 3), (BACKWARD, 2)])
def test_rounding_keeps_the_types_mantissa_and_uses_its_whole_range(dtype, bits):
    x = np.array([-7e-9, *np.random.default_rng(0).uniform(5e-10, 7e-9, 999)], np.float32)
    values, scale = jax.jit(quantize, static_argnums=1)(x, dtype)
    assert values.dtype == dtype
    values = np.asarray(values).astype(np.float32)
    np.testing.assert_allclose(values * scale, x, rtol=2.0 ** -(bits + 1))
    assert np.abs(values).max() == np.float32(jnp.finfo(dtype).max)


@pytest.mark.parametrize("spec", ["BTD,DNH->BTNH", "BTNH,NHD->BTD", "EBD,EDF->EBF"])
def test_value_and_gradients_are_those_of_the_rounded_tensors_and_near_the_exact_ones(spec):
    x, kernel, g = operands(spec)
    inputs, out = spec.split("->")
    left, right = inputs.split(",")

    def einsums(x, kernel, x_again, g, kernel_again, g_again):
        forms = (
            (spec, x, kernel),
            (f"{out},{right}->{left}", g, kernel_again),
            (f"{left},{out}->{right}", x_again, g_again),
        )
        return [np.einsum(*form) for form in forms]

    ours = jax.jit(lambda *a: value_and_gradients(lambda x, k: float8_einsum(x, k, spec), *a))(x, kernel, g)
    x8, kernel8, g8 = rounded(x, FORWARD), rounded(kernel, FORWARD), rounded(g, BACKWARD)
    of_rounded, exact = einsums(x8, kernel8, x8, g8, kernel8, g8), einsums(x, kernel, x, g, kernel, g)
    for a, b, c in zip(ours, of_rounded, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
        # Rounding errors of about 2.5 % (e4m3) and 5 % (e5m2) of each factor, independent of each other.
        assert 0.01 < np.linalg.norm(a - c) / np.linalg.norm(c) < 0.08


def test_linear_keeps_the_activations_type_and_the_kernels_gradient_in_its_own():
    x, kernel, g = operands("BTD,DF->BTF")
    function = jax.jit(
        lambda *a: value_and_gradients(lambda x, k: linear(x, k, "BTD,DF->BTF", matmul="float8"), *a)
    ).lower(x.astype(jnp.bfloat16), kernel, g)
    assert [a.dtype for a in function.out_info] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    text = function.as_text()
    assert text.count("dot_general") == 3
    assert text.count("(tensor<3x16x32xf8E4M3FN>, tensor<32x48xf8E4M3FN>) -> tensor<3x16x48xf32>") == 1
    assert text.count("(tensor<3x16x48xf8E5M2>, tensor<32x48xf8E4M3FN>) -> tensor<3x16x32xf32>") == 1


def test_zeros_stay_zeros_and_what_is_not_finite_shows():
    matmul, kernel = jax.jit(lambda x, k: float8_einsum(x, k, "TD,DF->TF")), np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(matmul(np.zeros((2, 4), np.float32), kernel), 0)
    for bad in (np.inf, np.nan):
        assert not np.isfinite(matmul(np.array([[bad, 0, 0, 0], [1, 1, 1, 1]], np.float32), kernel)[0]).any()
