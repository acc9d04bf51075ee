"""Attention behind its final signature; `implementation` picks who computes it."""

from functools import partial

import jax
import jax.numpy as jnp

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a fully masked row gives 0, not NaN


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    q_offset: jax.Array | int = 0,
    return_lse: bool = False,
    implementation: str = "reference",
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Multi-head, grouped-query or multi-query attention (Vaswani et al. 2017; Ainslie et al. 2023).

    Args:
      q_BTNH: queries; N is a multiple of K.
      k_BSKH, v_BSKH: keys and values.
      causal: a query sees keys at its own position and before.
      window: a query sees itself and the `window - 1` keys before it; None: all.
      q_segment_ids, kv_segment_ids: `[B, T]` and `[B, S]`; a query sees its own segment only.
        `q_segment_ids` alone serves both.
      softcap: c * tanh(logit / c) before the mask (Gemma 2).
      scale: of the logits; None: 1 / sqrt(H).
      q_offset: position of the first query among the keys (a KV cache's length), scalar.
      return_lse: also return log-sum-exp `lse_BNT` in f32.
      implementation: `reference` is plain XLA with the whole `[B, N, T, S]` f32 logits.

    Returns:
      `out_BTNH` in q's type; a query that may see no key gives 0.

    Raises:
      ValueError: an unknown implementation, or N not a multiple of K.
    """
    if implementation != "reference":
        raise ValueError(f"attention implementation {implementation!r} is unknown; use reference")
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if N % K:
        raise ValueError(f"{N} query heads are not a multiple of {K} key/value heads")
    mask_B11TS = _mask(T, S, causal, window, q_segment_ids, kv_segment_ids, q_offset)
    scale = H**-0.5 if scale is None else scale
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    out_BTKGH, lse_BKGT = _reference(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, scale, softcap)
    out_BTNH = out_BTKGH.reshape(B, T, N, H)
    return (out_BTNH, lse_BKGT.reshape(B, N, T)) if return_lse else out_BTNH


def _mask(T, S, causal, window, q_segment_ids, kv_segment_ids, q_offset):
    """Return who sees whom as `[B or 1, 1, 1, T, S]`."""
    q_T1 = q_offset + jnp.arange(T)[:, None]
    k_1S = jnp.arange(S)[None, :]
    mask_TS = jnp.ones((T, S), bool)
    if causal:
        mask_TS &= k_1S <= q_T1
    if window is not None:
        mask_TS &= k_1S > q_T1 - window
        if not causal:
            mask_TS &= k_1S <= q_T1
    mask_B11TS = mask_TS[None, None, None]
    if q_segment_ids is not None:
        kv_segment_ids = q_segment_ids if kv_segment_ids is None else kv_segment_ids
        same_BTS = q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
        mask_B11TS = mask_B11TS & same_BTS[:, None, None]
    return mask_B11TS


# Its own backward pass: autodiff would keep the logits and the weights in f32 beside the weights in the compute
# type (10 bytes instead of 2 per query and key in bf16), and multiply f32 by bf16.
@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _reference(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, scale, softcap):
    return _reference_fwd(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, scale, softcap)[0]


def _reference_fwd(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, scale, softcap):
    dtype, tanh_BKGTS = q_BTKGH.dtype, None
    logits_BKGTS = scale * jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    if softcap is not None:
        tanh_BKGTS = jnp.tanh(logits_BKGTS / softcap)
        logits_BKGTS = softcap * tanh_BKGTS
    logits_BKGTS = jnp.where(mask_B11TS, logits_BKGTS, _MASKED)
    top_BKGT1 = jnp.max(logits_BKGTS, -1, keepdims=True)
    weights_BKGTS = jnp.where(mask_B11TS, jnp.exp(logits_BKGTS - top_BKGT1), 0.0)
    total_BKGT1 = jnp.sum(weights_BKGTS, -1, keepdims=True)
    weights_BKGTS = (weights_BKGTS / jnp.where(total_BKGT1 == 0, 1.0, total_BKGT1)).astype(dtype)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
    lse_BKGT = (top_BKGT1 + jnp.log(total_BKGT1))[..., 0]
    kept = weights_BKGTS, None if tanh_BKGTS is None else tanh_BKGTS.astype(dtype)
    return (out_BTKGH, lse_BKGT), (q_BTKGH, k_BSKH, v_BSKH, *kept)


def _reference_bwd(scale, softcap, residuals, cotangents):
    q_BTKGH, k_BSKH, v_BSKH, weights_BKGTS, tanh_BKGTS = residuals
    dout_BTKGH, dlse_BKGT = cotangents
    dv_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", weights_BKGTS, dout_BTKGH)
    dweights_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", dout_BTKGH, v_BSKH, preferred_element_type=jnp.float32)
    weights_BKGTS = weights_BKGTS.astype(jnp.float32)
    mean_BKGT1 = jnp.sum(weights_BKGTS * dweights_BKGTS, -1, keepdims=True)
    dlogits_BKGTS = scale * weights_BKGTS * (dweights_BKGTS - mean_BKGT1 + dlse_BKGT[..., None])
    if softcap is not None:
        dlogits_BKGTS = dlogits_BKGTS * (1 - jnp.square(tanh_BKGTS.astype(jnp.float32)))
    dlogits_BKGTS = dlogits_BKGTS.astype(q_BTKGH.dtype)
    dq_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", dlogits_BKGTS, k_BSKH)
    dk_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", dlogits_BKGTS, q_BTKGH)
    return dq_BTKGH, dk_BSKH, dv_BSKH, None


_reference.defvjp(_reference_fwd, _reference_bwd)
