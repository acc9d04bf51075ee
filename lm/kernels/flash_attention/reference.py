"""Attention with all logits at once: what the blockwise backends are held against; best for a few dozen tokens."""

from functools import partial

import jax
import jax.numpy as jnp

from lm.kernels.flash_attention.options import MASKED, Options, visible


def reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_ids_BT: jax.Array | None,
    kv_ids_BS: jax.Array | None,
    offset: jax.Array | int,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """Return `out_BTNH` and `lse_BNT`; arguments as `flash_attention`. Memory: weights `[B, N, T, S]` in q's type."""
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    at_q_B11T1 = jnp.asarray(offset, jnp.int32).reshape(-1, 1, 1, 1, 1) + jnp.arange(T).reshape(1, 1, 1, T, 1)
    mask_B11TS = visible(options, at_q_B11T1, jnp.arange(S).reshape(1, 1, 1, 1, S))
    if q_ids_BT is not None:
        mask_B11TS &= (q_ids_BT[:, :, None] == kv_ids_BS[:, None, :])[:, None, None]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    out_BTKGH, lse_BKGT = _attend(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, options)
    return out_BTKGH.reshape(B, T, N, H), lse_BKGT.reshape(B, N, T)


# Its own backward pass: autodiff would keep the logits and the weights in f32 beside the weights in the compute
# type (10 bytes instead of 2 per query and key in bf16), and multiply f32 by bf16.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, options):
    return _attend_fwd(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, options)[0]


def _attend_fwd(q_BTKGH, k_BSKH, v_BSKH, mask_B11TS, options):
    dtype, tanh_BKGTS = q_BTKGH.dtype, None
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    logits_BKGTS = options.scale * logits_BKGTS
    if options.softcap is not None:
        tanh_BKGTS = jnp.tanh(logits_BKGTS / options.softcap)
        logits_BKGTS = options.softcap * tanh_BKGTS
    logits_BKGTS = jnp.where(mask_B11TS, logits_BKGTS, MASKED)
    top_BKGT1 = jnp.max(logits_BKGTS, -1, keepdims=True)
    weights_BKGTS = jnp.where(mask_B11TS, jnp.exp(logits_BKGTS - top_BKGT1), 0.0)
    total_BKGT1 = jnp.sum(weights_BKGTS, -1, keepdims=True)
    total_BKGT1 = jnp.where(total_BKGT1 == 0, 1.0, total_BKGT1)
    weights_BKGTS = (weights_BKGTS / total_BKGT1).astype(dtype)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
    lse_BKGT = (top_BKGT1 + jnp.log(total_BKGT1))[..., 0]
    kept = weights_BKGTS, None if tanh_BKGTS is None else tanh_BKGTS.astype(dtype)
    return (out_BTKGH, lse_BKGT), (q_BTKGH, k_BSKH, v_BSKH, *kept)


def _attend_bwd(options, residuals, cotangents):
    q_BTKGH, k_BSKH, v_BSKH, weights_BKGTS, tanh_BKGTS = residuals
    dout_BTKGH, dlse_BKGT = cotangents
    dv_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", weights_BKGTS, dout_BTKGH)
    dweights_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", dout_BTKGH, v_BSKH, preferred_element_type=jnp.float32)
    weights_BKGTS = weights_BKGTS.astype(jnp.float32)
    mean_BKGT1 = jnp.sum(weights_BKGTS * dweights_BKGTS, -1, keepdims=True)
    dlogits_BKGTS = options.scale * weights_BKGTS * (dweights_BKGTS - mean_BKGT1 + dlse_BKGT[..., None])
    if options.softcap is not None:
        dlogits_BKGTS = dlogits_BKGTS * (1 - jnp.square(tanh_BKGTS.astype(jnp.float32)))
    dlogits_BKGTS = dlogits_BKGTS.astype(q_BTKGH.dtype)
    dq_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", dlogits_BKGTS, k_BSKH)
    dk_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", dlogits_BKGTS, q_BTKGH)
    return dq_BTKGH, dk_BSKH, dv_BSKH, None


_attend.defvjp(_attend_fwd, _attend_bwd)
