"""Attention: grouped queries, masks, soft cap and log-sum-exp against a per-query loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm.kernels.attention import attention


def make(B=2, T=7, S=7, N=4, K=2, H=8, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = [(B, T, N, H), (B, S, K, H), (B, S, K, H)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def by_loop(q, k, v, *, window=None, segments=None, softcap=None, offset=0):
    """One query and one key at a time, as the definition reads."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    out = np.zeros_like(q)
    for b in range(B):
        for n in range(N):
            kv = n // (N // k.shape[2])
            for t in range(T):
                at = t + offset
                seen = [s for s in range(k.shape[1]) if s <= at and (window is None or s > at - window)]
                if segments is not None:
                    seen = [s for s in seen if segments[b][s] == segments[b][at]]
                logits = np.array([q[b, t, n] @ k[b, s, kv] / np.sqrt(H) for s in seen])
                if softcap:
                    logits = softcap * np.tanh(logits / softcap)
                weights = np.exp(logits - logits.max())
                out[b, t, n] = (weights / weights.sum()) @ v[b, seen, kv]
    return out


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_matches_the_definition(window, softcap, kv_heads):
    q, k, v = make(K=kv_heads)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 3, 3, 3]])
    out = attention(q, k, v, window=window, softcap=softcap, q_segment_ids=jnp.array(segments))
    np.testing.assert_allclose(out, by_loop(q, k, v, window=window, softcap=softcap, segments=segments), atol=2e-6)


def test_an_offset_continues_a_cache():
    q, k, v = make()
    whole = attention(q, k, v, window=3)
    part = attention(q[:, 4:], k, v, window=3, q_offset=jnp.int32(4))
    np.testing.assert_allclose(part, whole[:, 4:], atol=1e-6)


def test_no_value_and_no_gradient_leaks_between_documents():
    """Large finite poison in document 2 changes nothing in document 1, bit for bit."""
    q, k, v = make()
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2]] * 2)
    poison = jnp.where((segments == 2)[:, :, None, None], 1e4, 0.0)

    def first_document(q, k, v):
        return attention(q, k, v, q_segment_ids=segments)[:, :3].sum()

    clean = attention(q, k, v, q_segment_ids=segments)[:, :3]
    poisoned = attention(q, k + poison, v + poison, q_segment_ids=segments)[:, :3]
    np.testing.assert_array_equal(clean, poisoned)
    for gradient in jax.grad(first_document, (0, 1, 2))(q, k, v):
        np.testing.assert_array_equal(gradient[:, 3:], 0)
    # Nor to the document before: without causality the mask alone keeps them apart.
    second = attention(q, k, v, q_segment_ids=segments, causal=False)[:, 3:]
    poison = jnp.where((segments == 1)[:, :, None, None], 1e4, 0.0)
    np.testing.assert_array_equal(
        second, attention(q, k + poison, v + poison, q_segment_ids=segments, causal=False)[:, 3:]
    )


def test_a_query_that_sees_no_key_gives_zero_and_a_finite_gradient():
    q, k, v = make()
    q_segments, kv_segments = jnp.ones((2, 7), jnp.int32), jnp.full((2, 7), 2)

    def total(q):
        return attention(q, k, v, q_segment_ids=q_segments, kv_segment_ids=kv_segments).sum()

    assert total(q) == 0
    assert np.isfinite(jax.grad(total)(q)).all()


def test_lse_is_the_log_of_the_softmax_denominator():
    q, k, v = make(N=2, K=2)
    _, lse_BNT = attention(q, k, v, return_lse=True)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(8)
    logits = jnp.where(jnp.tril(jnp.ones((7, 7), bool))[None, None], logits, -jnp.inf)
    np.testing.assert_allclose(lse_BNT, jax.nn.logsumexp(logits, -1), atol=1e-5)


def test_bf16_inputs_give_bf16_close_to_f32():
    q, k, v = make()
    out = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), attention(q, k, v), atol=0.05)


def test_unknown_implementations_and_uneven_heads_are_refused():
    q, k, v = make(N=4, K=2)
    with pytest.raises(ValueError, match="unknown"):
        attention(q, k, v, implementation="fast")
    with pytest.raises(ValueError, match="not a multiple"):
        attention(q[:, :, :3], k, v)
