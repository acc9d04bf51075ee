"""Attention among the tokens of trees that lie in a row (`lm.evaluate.prefixes`)."""

import jax
import jax.numpy as jnp

_BLOCK = 128  # queries whose logits exist at one time
_MASKED = -1e30


def tree_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    q_segment_ids: jax.Array,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    **_,
) -> jax.Array:
    """Return `out_BTNH`: a token sees itself and its ancestors. For a forward pass; arguments as `flash_attention`.

    Args:
      q_segment_ids: `ends_BT`: key k's subtree ends before it, so query q sees k if `k <= q < ends[k]`; 0 is padding,
        whose own result has no meaning.
      window: counts places in the row, so trees must not branch where there is one.
    """
    (B, T, N, H), K = q_BTNH.shape, k_BTKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5 if scale is None else scale)
    blocks = []
    for first in range(0, T, _BLOCK):
        stop = min(first + _BLOCK, T)  # no query of the block sees a key from here on
        k_BSKH, v_BSKH = k_BTKH[:, :stop], v_BTKH[:, :stop]
        logits_BKGTS = jnp.einsum(
            "BTKGH,BSKH->BKGTS", q_BTKGH[:, first:stop], k_BSKH, preferred_element_type=jnp.float32
        )
        if softcap is not None:
            logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
        q_1T1, k_11S = jnp.arange(first, stop)[None, :, None], jnp.arange(stop)[None, None, :]
        seen_BTS = (k_11S <= q_1T1) & (q_1T1 < q_segment_ids[:, None, :stop])
        if window is not None:
            seen_BTS &= k_11S > q_1T1 - window
        logits_BKGTS = jnp.where(seen_BTS[:, None, None], logits_BKGTS, _MASKED)
        weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BTKH.dtype)
        blocks.append(jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH))
    return jnp.concatenate(blocks, axis=1).reshape(B, T, N, H)
