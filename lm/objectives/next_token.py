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
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (grad_scale * sum of weighted nll, sums of nll, tokens and bytes, and what the blocks report).

    The blocks' own losses (a router's) count once per token, with the weights in `model.config`.

    Args:
      model: a `Transformer`.
      params: its parameters.
      batch: `inputs_BT`, `targets_BT`, `weights_BT`, `segment_ids_BT`, `positions_BT`, `target_bytes_BT`.
      cross_entropy: `lm.kernels.cross_entropy.cross_entropy` or its sharded form.
      grad_scale: usually 1 / (token weight of the global batch).
      dropout_key: None: no dropout.
    """
    hidden = model.hidden(
        params, batch["inputs_BT"], batch["positions_BT"], batch["segment_ids_BT"], dropout_key=dropout_key
    )
    weights_BT = batch["weights_BT"]
    tokens = jnp.sum(weights_BT)
    loss, nll_BT = cross_entropy(
        hidden.x_BTD,
        model.head(params),
        batch["targets_BT"],
        weights_BT,
        grad_scale,
        softcap=model.config.logit_softcap,
        chunk=model.config.loss_chunk,
    )
    sums = {
        "nll": jnp.sum(nll_BT * weights_BT),
        "tokens": tokens,
        "bytes": jnp.sum(jnp.where(weights_BT > 0, batch["target_bytes_BT"], 0)),
    }
    for name, value in hidden.aux.items():
        if name.endswith("_loss"):
            loss = loss + grad_scale * tokens * getattr(model.config, name) * value
        sums[name] = value if name.endswith("_tokens") else value * tokens
    return loss, sums
