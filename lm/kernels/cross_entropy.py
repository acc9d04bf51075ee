"""Cross-entropy against a large vocabulary without the [B, T, V] logits.

The head's matmul, the soft cap, the softmax and, when a gradient is asked for, their backward
pass run chunk by chunk over the tokens, so that only `[chunk, V]` logits exist at one time. The
gradient of the summed loss is made in the forward pass (3 head matmuls in all, where
recomputing in the backward pass takes 4), which is why the loss is summed here.

With the vocabulary split over devices (Megatron-LM, Shoeybi et al. 2019) each computes the logits of its
own columns; of a chunk, two numbers per token and device are exchanged.
"""

from functools import partial

import jax
import jax.numpy as jnp


def cross_entropy(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    grad_scale: jax.Array | float = 1.0,
    *,
    softcap: float | None = None,
    chunk: int = 1024,
    z_loss: float = 0.0,
    return_log_z: bool = False,
    vocab_axis: str | None = None,
) -> tuple[jax.Array, ...]:
    """Return the weighted summed loss, which is differentiable, and the losses per token.

    Args:
      hidden_BTD: final hidden states in the compute type.
      head_DV: output head in the parameter type.
      targets_BT: int32 token ids.
      weights_BT: f32 weight of each token, 0 where it does not count.
      grad_scale: factor of the loss, usually 1 / (global token count), times the loss scale in
        fp16; it enters before the gradient is rounded to the compute type.
      softcap: c * tanh(logit / c) on the logits (Gemma 2).
      chunk: tokens whose logits exist at one time.
      z_loss: weight of log(Z)^2, Z the softmax's sum, which keeps logits from drifting (PaLM,
        Chowdhery et al. 2022).
      return_log_z: also return `log_z_BT`.
      vocab_axis: the mesh axis, local here, over whose devices `head_DV` is split along V in equal parts; None: it
        is whole. The other arguments and the results are the same on these devices.

    Returns:
      `loss = grad_scale * sum(weights * (nll + z_loss * log_z^2))`, then `nll_BT` and, if asked for,
      `log_z_BT`, both in f32 nats and without a gradient. With `vocab_axis` the head's gradient is that of the
      device's own part, and the hidden states' gradients add up to theirs over the axis.
    """
    grad_scale = jnp.asarray(grad_scale, jnp.float32)
    options = (softcap, chunk, z_loss, vocab_axis)
    loss, *per_token = _loss(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, *options)
    return loss, *map(jax.lax.stop_gradient, per_token[: 1 + return_log_z])


def _capped_logits(h_CD, head_DV, softcap):
    logits_CV = jnp.einsum("CD,DV->CV", h_CD, head_DV.astype(h_CD.dtype), preferred_element_type=jnp.float32)
    return logits_CV if softcap is None else softcap * jnp.tanh(logits_CV / softcap)


def _own(targets_C, num_columns, vocab_axis):
    """Return the targets as columns of the logits here; those of other devices lie outside of them."""
    return targets_C if vocab_axis is None else targets_C - jax.lax.axis_index(vocab_axis) * num_columns


def _nll(logits_CV, targets_C, vocab_axis):
    lse_C = jax.nn.logsumexp(logits_CV, axis=-1)
    if vocab_axis is None:
        return lse_C, lse_C - jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
    num_columns = logits_CV.shape[1]
    own_C = _own(targets_C, num_columns, vocab_axis)
    logit_C = jnp.take_along_axis(logits_CV, jnp.clip(own_C, 0, num_columns - 1)[:, None], axis=-1)[:, 0]
    logit_C = jnp.where((own_C >= 0) & (own_C < num_columns), logit_C, 0)
    parts_n2C = jax.lax.all_gather(jnp.stack([lse_C, logit_C]), vocab_axis)  # the one exchange of a chunk
    lse_C = jax.nn.logsumexp(parts_n2C[:, 0], axis=0)
    return lse_C, lse_C - jnp.sum(parts_n2C[:, 1], axis=0)


def _chunks(x, chunk):
    """`[B, T, …]` to `[n, chunk, …]`, padded with zeros (whose weight is zero too)."""
    flat = x.reshape((x.shape[0] * x.shape[1], *x.shape[2:]))
    size = min(chunk, len(flat))
    pad = -len(flat) % size
    flat = jnp.pad(flat, [(0, pad)] + [(0, 0)] * (flat.ndim - 1))
    return flat.reshape((-1, size, *flat.shape[1:]))


def _per_token(chunks, like_BT):
    """`[n, chunk]` back to `[B, T]`, without the padding."""
    return chunks.reshape(-1)[: like_BT.size].reshape(like_BT.shape)


def _total(nll_BT, log_z_BT, z_loss):
    return nll_BT + z_loss * log_z_BT**2 if z_loss else nll_BT


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _loss(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, softcap, chunk, z_loss, vocab_axis):
    def body(_, xs):
        h_CD, t_C = xs
        return None, _nll(_capped_logits(h_CD, head_DV, softcap), t_C, vocab_axis)

    _, per_token = jax.lax.scan(body, None, (_chunks(hidden_BTD, chunk), _chunks(targets_BT, chunk)))
    log_z_BT, nll_BT = (_per_token(x, targets_BT) for x in per_token)
    return grad_scale * jnp.sum(_total(nll_BT, log_z_BT, z_loss) * weights_BT), nll_BT, log_z_BT


def _loss_fwd(hidden_BTD, head_DV, targets_BT, weights_BT, grad_scale, softcap, chunk, z_loss, vocab_axis):
    def body(dhead_DV, xs):
        h_CD, t_C, w_C = xs
        logits_CV = _capped_logits(h_CD, head_DV, softcap)
        lse_C, nll_C = _nll(logits_CV, t_C, vocab_axis)
        num_columns = logits_CV.shape[1]
        one_hot_CV = jnp.arange(num_columns)[None, :] == _own(t_C, num_columns, vocab_axis)[:, None]
        softmax_CV = jnp.exp(logits_CV - lse_C[:, None])
        if z_loss:  # d log(Z)^2 / d logits = 2 log(Z) softmax
            softmax_CV = softmax_CV * (1 + 2 * z_loss * lse_C)[:, None]
        dlogits_CV = (softmax_CV - one_hot_CV) * (w_C * grad_scale)[:, None]
        if softcap is not None:
            dlogits_CV = dlogits_CV * (1 - (logits_CV / softcap) ** 2)
        dlogits_CV = dlogits_CV.astype(h_CD.dtype)
        dh_CD = jnp.einsum("CV,DV->CD", dlogits_CV, head_DV.astype(h_CD.dtype))
        dhead_DV = dhead_DV + jnp.einsum("CD,CV->DV", h_CD, dlogits_CV, preferred_element_type=jnp.float32)
        return dhead_DV, (nll_C, lse_C, dh_CD)

    xs = tuple(_chunks(x, chunk) for x in (hidden_BTD, targets_BT, weights_BT))
    zero_DV = (head_DV * 0).astype(jnp.float32)  # inherits the head's varying axes under shard_map
    if len(xs[0]) == 1:
        dhead_DV, (nll, lse, dh) = body(zero_DV, tuple(x[0] for x in xs))
    else:
        dhead_DV, (nll, lse, dh) = jax.lax.scan(body, zero_DV, xs)
    nll_BT, log_z_BT = _per_token(nll, targets_BT), _per_token(lse, targets_BT)
    dh_BTD = dh.reshape(-1, dh.shape[-1])[: targets_BT.size].reshape(hidden_BTD.shape)
    total_BT = _total(nll_BT, log_z_BT, z_loss)
    loss = grad_scale * jnp.sum(total_BT * weights_BT)
    residuals = (dh_BTD, dhead_DV, jnp.zeros((), head_DV.dtype), total_BT, weights_BT, grad_scale)
    return (loss, nll_BT, log_z_BT), residuals


def _loss_bwd(softcap, chunk, z_loss, vocab_axis, residuals, cotangents):
    dh_BTD, dhead_DV, head_dtype, total_BT, weights_BT, grad_scale = residuals
    g, *_ = cotangents
    # What a device holds of the logits enters the loss of every device.
    of_all = g if vocab_axis is None else jax.lax.psum(g, vocab_axis)
    return (
        (dh_BTD * of_all).astype(dh_BTD.dtype),
        (dhead_DV * of_all).astype(head_dtype.dtype),
        None,
        g * grad_scale * total_BT,
        g * jnp.sum(total_BT * weights_BT),
    )


_loss.defvjp(_loss_fwd, _loss_bwd)
