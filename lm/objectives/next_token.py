"""Next-token prediction: the mean negative log-likelihood of each token given those before it."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


def next_token(
    model,
    params,
    batch: Mapping[str, jax.Array],
    *,
    cross_entropy: Callable,
    grad_scale: jax.Array,
    dropout_key: jax.Array | None,
    z_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (grad_scale * sum of weighted nll and z-loss, sums of nll, tokens and bytes, what the blocks report).

    The blocks' own losses (a router's) count once per token, with the weights in `model.config`.

    Args:
      model: a `Transformer`.
      params: its parameters.
      batch: `inputs_BT`, `targets_BT`, `weights_BT`, `segment_ids_BT`, `positions_BT`, `target_bytes_BT`.
      cross_entropy: `lm.kernels.cross_entropy.cross_entropy` or its sharded form.
      grad_scale: usually 1 / (token weight of the global batch).
      dropout_key: None: no dropout.
      z_loss: weight of log(Z)^2 in the loss; above 0, its sum is among the sums too.
    """
    hidden = model.hidden(
        params, batch["inputs_BT"], batch["positions_BT"], batch["segment_ids_BT"], dropout_key=dropout_key
    )
    weights_BT = batch["weights_BT"]
    tokens = jnp.sum(weights_BT)
    loss, nll_BT, log_z_BT = cross_entropy(
        hidden.x_BTD,
        model.head(params),
        batch["targets_BT"],
        weights_BT,
        grad_scale,
        softcap=model.config.logit_softcap,
        chunk=model.config.loss_chunk,
        z_loss=z_loss,
        return_log_z=True,
    )
    sums = {
        "nll": jnp.sum(nll_BT * weights_BT),
        "tokens": tokens,
        "bytes": jnp.sum(jnp.where(weights_BT > 0, batch["target_bytes_BT"], 0)),
    }
    if z_loss:
        sums["z_loss"] = z_loss * jnp.sum(log_z_BT**2 * weights_BT)
    for name, value_M in hidden.aux.items():  # of M micro-batches in a pipeline, else of one
        tokens_M = jnp.sum(weights_BT.reshape(len(value_M), -1), axis=1)
        total = jnp.sum(value_M if name.endswith("_tokens") else value_M * tokens_M)
        if name.endswith("_loss"):
            loss = loss + grad_scale * getattr(model.config, name) * total
        sums[name] = total
    return loss, sums
