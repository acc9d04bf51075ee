"""A matmul against a parameter, and its gradients, whichever operand of the kernel's gradient is the larger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.linear import linear

SIZES = {"B": 2, "T": 3, "D": 8, "F": 32, "N": 4, "H": 16}


@pytest.mark.parametrize("spec", ["BTD,DF->BTF", "BTF,FD->BTD", "BTD,DNH->BTNH", "BTNH,NHD->BTD"])
def test_gradients_are_those_of_the_einsum(spec):
    random = np.random.default_rng(0)
    x, kernel, g = (
        jnp.asarray(random.normal(size=[SIZES[c] for c in letters]), jnp.float32)
        for letters in spec.replace("->", ",").split(",")
    )
    out, vjp = jax.vjp(lambda x, kernel: linear(x, kernel, spec), x, kernel)
    expected, expected_vjp = jax.vjp(lambda x, kernel: jnp.einsum(spec, x, kernel), x, kernel)
    for ours, theirs in zip((out, *vjp(g)), (expected, *expected_vjp(g)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
