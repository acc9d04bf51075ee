"""Which implementation of attention computes what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.capabilities import AttentionCall, Capabilities
from lm.kernels.flash_attention import cudnn, flash_attention
from lm.kernels.flash_attention.options import Options
from tests.kernels.attention_cases import Case, define, seen


@pytest.mark.parametrize(
    ("platform", "call", "name"),
    [
        ("cpu", {}, "blockwise"),
        ("tpu", {}, "tpu"),
        ("tpu", {"dtype": "bfloat16", "segment_ids": True, "window": True, "softcap": True, "lse": True}, "tpu"),
        ("tpu", {"dtype": "float16"}, "blockwise"),
        ("tpu", {"num_queries": 1, "q_offset": True}, "blockwise"),
        ("gpu", {"dtype": "bfloat16", "window": True, "head_dim": 80}, "cudnn"),
        ("gpu", {}, "blockwise"),  # f32
        ("gpu", {"dtype": "bfloat16", "head_dim": 256}, "blockwise"),
        *(
            ("gpu", {"dtype": "bfloat16", need: True}, "blockwise")
            for need in ("segment_ids", "softcap", "q_offset", "lse", "deterministic")
        ),
    ],
)
def test_auto_takes_the_best_that_honours_the_call(platform, call, name):
    assert Capabilities(platform=platform).attention_for("auto", AttentionCall(**call)) == name


@pytest.mark.parametrize(
    ("name", "case", "more"),
    [
        ("cudnn", Case(documents=2), {}),
        ("cudnn", Case(softcap=2.0, dtype="bfloat16"), {}),
        ("cudnn", Case(T=8, S=24, dtype="bfloat16"), {}),
        ("cudnn", Case(dtype="bfloat16"), {"deterministic": True}),
        ("tpu", Case(T=1, S=24), {}),
        ("tpu", Case(dtype="float16"), {}),
    ],
)
def test_what_an_implementation_lacks_goes_to_blockwise(name, case, more):
    arrays, ids = case.arrays()
    q, k, v = map(jnp.asarray, arrays[:3])
    results = [
        flash_attention(q, k, v, **case.options, **ids, q_offset=case.q_offset, implementation=n, **more)
        for n in (name, "blockwise")
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("case", [Case(), Case(window=9, scale=0.3), Case(window=9, causal=False), Case(causal=False)])
def test_cudnn_is_asked_for_the_same_attention(case):
    """What we ask `jax.nn.dot_product_attention` for, computed by its other implementation."""
    arrays, ids = case.arrays()
    options = Options(case.causal, case.window, None, case.H**-0.5 if case.scale is None else case.scale)
    q, k, v, dout, dlse = map(jnp.asarray, arrays)
    out, vjp = jax.vjp(lambda *qkv: cudnn.attend(*qkv, options, implementation="xla"), q, k, v)
    wanted = define(*arrays[:4], 0 * dlse, mask_BTS=seen(case, ids), scale=options.scale, softcap=None)
    for ours, theirs in zip((out, *vjp(dout)), (wanted[0], *wanted[2:]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
