"""The mixture-of-experts feed-forward: a router, the experts, and what keeps them evenly used."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig, PrecisionConfig
from lm.kernels.activations import GATED
from lm.model.initializers import kernel_init, sizes
from lm.model.layers import Linear, parameter
from lm.model.layout import Layout

Aux = dict[str, jax.Array]


class Kernels(nn.Module):
    """The experts' kernels of one matmul, stacked: `EDF` or `EFD`."""

    config: ModelConfig
    letters: str
    precision: PrecisionConfig
    residual: bool = False

    @nn.compact
    def __call__(self) -> jax.Array:
        size = sizes(self.config)
        init = kernel_init(self.config, self.letters.removeprefix("E"), residual=self.residual)
        return parameter(self, "kernel", init, tuple(size[c] for c in self.letters))


class Experts(nn.Module):
    """Top-k of E feed-forwards per token, weighted by the softmax over the k (Shazeer et al. 2017; Mixtral).

    Returns `y_BTD` and, over the tokens that are not padding:
      router_balance_loss: E * sum_e f_e p_e, of f_e the share of choices and p_e the mean probability of
        expert e (Fedus et al. 2022); 1 when even.
      router_z_loss: mean of log(sum(exp(logits)))^2 (Zoph et al. 2022).
      expert_load: the busiest expert's share of the choices over the even share.
      routed_tokens, dropped_tokens: (token, expert) pairs computed, and passed by for lack of capacity.
    Losses and load are means over the layers, so each layer gives its part / L, and over the whole micro-batch,
    so every device has the same ones; tokens are counted of the rows here.
    """

    config: ModelConfig
    precision: PrecisionConfig
    layout: Layout

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segment_ids_BT: jax.Array) -> tuple[jax.Array, Aux]:
        config, layout, E = self.config, self.layout, self.config.num_experts
        own_length = x_BTD.shape[1]
        x_BTD = layout.enter(x_BTD, segment_ids_BT.shape[1])
        # Routing in f32: rounded logits would send tokens elsewhere (Fedus et al. 2022, "selective precision").
        router = Linear(config, "BTD,DR->BTR", self.precision, name="router")
        logits_BTE = router(x_BTD.astype(jnp.float32))
        probabilities_BTE = jax.nn.softmax(logits_BTE)
        top_BTk, ids_BTk = jax.lax.top_k(probabilities_BTE, config.experts_per_token)
        gates_BTk = top_BTk / jnp.sum(top_BTk, -1, keepdims=True)
        counts_BT = segment_ids_BT > 0

        kernels = {"up": Kernels(config, "EDF", self.precision, name="up")()}
        if config.activation in GATED:
            kernels["gate"] = Kernels(config, "EDF", self.precision, name="gate")()
        kernels["down"] = Kernels(config, "EFD", self.precision, residual=True, name="down")()
        y_BTD, taken_E = layout.experts(
            x_BTD,
            jnp.where(counts_BT[:, :, None], ids_BTk, -1),
            gates_BTk,
            kernels,
            activation=config.activation,
            capacity=config.expert_capacity,
            implementation=config.experts,
        )

        weight_BT1 = counts_BT[:, :, None].astype(jnp.float32)
        own_tokens = jnp.sum(weight_BT1)
        chosen_BTE = jnp.sum(jax.nn.one_hot(ids_BTk, E), axis=2) / config.experts_per_token
        z_BT = jax.nn.logsumexp(logits_BTE, -1)
        sums = {
            "tokens": own_tokens,
            "chosen": jnp.sum(chosen_BTE * weight_BT1, (0, 1)),
            "probability": jnp.sum(probabilities_BTE * weight_BT1, (0, 1)),
            "z": jnp.sum(z_BT**2 * weight_BT1[..., 0]),
        }
        sums = layout.sum_over_batch(sums)
        tokens = jnp.maximum(sums["tokens"], 1)
        share_E, mean_E = sums["chosen"] / tokens, sums["probability"] / tokens
        routed = jnp.sum(taken_E).astype(jnp.float32)
        return layout.leave(y_BTD, own_length), {
            "router_balance_loss": E * jnp.sum(share_E * mean_E) / config.num_layers,
            "router_z_loss": sums["z"] / tokens / config.num_layers,
            "expert_load": E * jnp.max(share_E) / config.num_layers,
            "routed_tokens": routed,
            "dropped_tokens": own_tokens * config.experts_per_token - routed,
        }
