"""`flash_attention`: one function with one meaning on every device; `implementation` picks who computes it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.capabilities import ATTENTION, AttentionCall, Capabilities
from lm.kernels.flash_attention import blockwise, cudnn, tpu
from lm.kernels.flash_attention.options import Options
from lm.kernels.flash_attention.reference import reference
from lm.kernels.named import merge_heads, name_heads, split_heads


class Backend(NamedTuple):
    """The two passes of a backend: `forward(q, k, v, q_ids, kv_ids, offset, options) -> (out, lse)` and
    `backward(q, k, v, q_ids, kv_ids, offset, lse, dout, delta, options) -> (dq, dk, dv)`."""

    forward: Callable
    backward: Callable


_BACKENDS = {"blockwise": Backend(blockwise.forward, blockwise.backward), "tpu": Backend(tpu.forward, tpu.backward)}


def flash_attention(
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
    deterministic: bool = False,
    return_lse: bool = False,
    implementation: str = "auto",
    device_kind: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Multi-head, grouped-query or multi-query attention (Vaswani et al. 2017; Ainslie et al. 2023) in O(T) memory.

    Args:
      q_BTNH: queries in f32, bf16 or fp16; N is a multiple of K.
      k_BSKH, v_BSKH: keys and values.
      causal: a query sees keys at its own position and before.
      window: a query sees itself and the `window - 1` keys before it; None: all.
      q_segment_ids, kv_segment_ids: int32 `[B, T]` and `[B, S]`; a query sees its own segment only.
        `q_segment_ids` alone serves both.
      softcap: c * tanh(logit / c) before the mask (Gemma 2).
      scale: of the logits; None: 1 / sqrt(H).
      q_offset: position of the first query among the keys (a KV cache's length): a scalar, or `[B]`.
      deterministic: equal inputs give gradients equal bit for bit.
      return_lse: also return the log-sum-exp of the logits, `lse_BNT` in f32, which is differentiable: partial
        results over parts of the keys are merged by it (ring attention).
      implementation: a name in `lm.capabilities.ATTENTION`; `auto`: the best that can do this here. What it lacks,
        as that table says, is computed by `blockwise`.
      device_kind: of the device that this is compiled for, as JAX names it; None: of the one here.

    Returns:
      `out_BTNH` in q's type. A query that sees no key gives 0, and an lse of about -2.4e38.

    Backends skip blocks of logits that no query sees. `out` and `lse` are named `attention_out` for remat policies.

    Raises:
      ValueError: an implementation that is unknown, or N not a multiple of K.
    """
    (_, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    if N % K:
        raise ValueError(f"{N} query heads are not a multiple of {K} key/value heads")
    if q_segment_ids is not None and kv_segment_ids is None:
        if T != S:
            raise ValueError(f"q_segment_ids alone cannot serve {T} queries and {S} keys; give kv_segment_ids too")
        kv_segment_ids = q_segment_ids
    starts_together = isinstance(q_offset, int) and q_offset == 0 and T == S
    call = AttentionCall(
        dtype=str(q_BTNH.dtype),
        head_dim=H,
        num_queries=T,
        segment_ids=q_segment_ids is not None,
        window=window is not None,
        softcap=softcap is not None,
        q_offset=not starts_together,
        lse=return_lse,
        deterministic=deterministic,
    )
    name = _chosen(implementation, call)
    options = Options(causal, window, softcap, float(H**-0.5 if scale is None else scale), device_kind)
    inputs = (q_BTNH, k_BSKH, v_BSKH, q_segment_ids, kv_segment_ids, q_offset)
    if name == "cudnn":
        return name_heads(cudnn.attend(*inputs[:3], options), "attention_out")
    if name == "reference":
        out_BTNH, lse_BNT = reference(*inputs, options)
        out_BTNH = name_heads(out_BTNH, "attention_out")
    else:
        static = isinstance(q_offset, int)
        offset = None if static else q_offset
        out_BTNH, lse_BNT = _attend(*inputs[:5], offset, q_offset if static else None, options, name)
    return (out_BTNH, lse_BNT) if return_lse else out_BTNH


def backend_for(implementation: str, call: AttentionCall) -> Backend:
    """Return the passes that compute a call, for a caller with a backward pass of its own (ring attention).

    Over parts of the keys, `backward` takes the log-sum-exp over all of them, and the delta (`row_delta`) of the final
    `out`: the parts' gradients then add up.
    """
    return _BACKENDS.get(_chosen(implementation, call), _BACKENDS["blockwise"])


def _chosen(name: str, call: AttentionCall) -> str:
    """Return the implementation that a name stands for here; `blockwise` for what that one lacks."""
    if name == "auto":
        name = Capabilities(platform=jax.default_backend()).attention_for(name, call)
    if name not in ATTENTION:
        raise ValueError(f"attention implementation {name!r} is unknown; use one of {', '.join(ATTENTION)}")
    return "blockwise" if ATTENTION[name].lacks(call) else name


def row_delta(out_BTNH: jax.Array, dout_BTNH: jax.Array) -> jax.Array:
    """Return `delta_BNT` in f32, the row sums of out * dout, which a backward pass takes off the weights' gradients."""
    product_BTNH = out_BTNH.astype(jnp.float32) * dout_BTNH.astype(jnp.float32)
    return jnp.sum(product_BTNH, -1).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attend(q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, static_offset, options, name):
    offset = static_offset if offset is None else offset
    return _BACKENDS[name].forward(q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, options)


def _attend_fwd(*arguments):
    q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, *_ = arguments
    out_BTNH, lse_BNT = _attend.fun(*arguments)
    out_BTNH, lse_BNT = name_heads(out_BTNH, "attention_out"), checkpoint_name(lse_BNT, "attention_out")
    heads = tuple(map(merge_heads, (q_BTNH, k_BSKH, v_BSKH)))
    return (out_BTNH, lse_BNT), (heads, q_ids_BT, kv_ids_BS, offset, out_BTNH, lse_BNT)


def _attend_bwd(static_offset, options, name, residuals, cotangents):
    heads, q_ids_BT, kv_ids_BS, offset, out_BTNH, lse_BNT = residuals
    dout_BTNH, dlse_BNT = cotangents
    q_BTNH, k_BSKH, v_BSKH = (split_heads(x, dout_BTNH.shape[-1]) for x in heads)
    delta_BNT = row_delta(out_BTNH, dout_BTNH) - dlse_BNT
    offset = static_offset if offset is None else offset
    grads = _BACKENDS[name].backward(
        q_BTNH, k_BSKH, v_BSKH, q_ids_BT, kv_ids_BS, offset, lse_BNT, dout_BTNH, delta_BNT, options
    )
    return *grads, None, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)
