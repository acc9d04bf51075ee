"""One transformer block: attention and feed-forward (GPT-2, Llama, Qwen, Gemma, Mixtral and between)."""

import functools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig, PrecisionConfig
from lm.kernels.activations import GATED, activate
from lm.kernels.named import name_heads
from lm.model.experts import Experts
from lm.model.layers import Embedding, Linear, Norm
from lm.model.layout import Layout
from lm.model.rope import apply_rope


class Attention(nn.Module):
    """Self-attention with grouped queries, optional RoPE, QK-norm, window and key/value cache."""

    config: ModelConfig
    precision: PrecisionConfig
    layout: Layout

    @nn.compact
    def __call__(self, x_BTD, *, tokens_BT, rope, segment_ids_BT, window, cache):
        config, layout = self.config, self.layout
        leave = functools.partial(layout.leave, length=x_BTD.shape[1])
        x_BTD = layout.enter(x_BTD, tokens_BT.shape[1])
        project = lambda name, spec: Linear(config, spec, self.precision, name=name)(x_BTD)  # noqa: E731
        q_BTNH = project("query", "BTD,DNH->BTNH")
        k_BTKH = project("key", "BTD,DKH->BTKH")
        v_BTKH = project("value", "BTD,DKH->BTKH")
        if config.value_embeddings:
            table = Embedding(config, "VKH", self.precision, layout, name="value_embed")
            v_BTKH = v_BTKH + table(tokens_BT)
        if config.qk_norm:  # Henry et al. 2020, Dehghani et al. 2023
            q_BTNH = Norm(config, self.precision, "rmsnorm", name="query_norm")(q_BTNH)
            k_BTKH = Norm(config, self.precision, "rmsnorm", name="key_norm")(k_BTKH)
        if rope is not None:
            q_BTNH, k_BTKH = apply_rope(q_BTNH, rope), apply_rope(k_BTKH, rope)
        q_BTNH = name_heads(q_BTNH, "query")
        k_BTKH = name_heads(k_BTKH, "key")
        v_BTKH = name_heads(v_BTKH, "value")
        k_BSKH, v_BSKH, kv_segment_ids_BS, offset = k_BTKH, v_BTKH, segment_ids_BT, 0
        if cache is not None:
            offset, kv_segment_ids_BS = cache["length"], cache["segment_ids_BS"]
            k_BSKH = jax.lax.dynamic_update_slice_in_dim(cache["key_BSKH"], k_BTKH, offset, 1)
            v_BSKH = jax.lax.dynamic_update_slice_in_dim(cache["value_BSKH"], v_BTKH, offset, 1)
        out_BTNH = layout.attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            causal=True,
            window=window,
            q_segment_ids=segment_ids_BT,
            kv_segment_ids=kv_segment_ids_BS,
            softcap=config.attention_softcap,
            scale=config.attention_scale,
            q_offset=offset,
            implementation=config.attention,
        )
        out = Linear(config, "BTNH,NHD->BTD", self.precision, leave, name="out")
        out_BTD = out(out_BTNH)
        return out_BTD, None if cache is None else {"key_BSKH": k_BSKH, "value_BSKH": v_BSKH}


class FeedForward(nn.Module):
    """The dense feed-forward, gated or not."""

    config: ModelConfig
    precision: PrecisionConfig
    layout: Layout

    @nn.compact
    def __call__(self, x_BTD, length):
        config, gate_BTF = self.config, None
        leave = functools.partial(self.layout.leave, length=x_BTD.shape[1])
        x_BTD = self.layout.enter(x_BTD, length)
        project = lambda name: Linear(config, "BTD,DF->BTF", self.precision, name=name)(x_BTD)  # noqa: E731
        if config.activation in GATED:
            gate_BTF = checkpoint_name(project("gate"), "mlp_gate")
        up_BTF = checkpoint_name(project("up"), "mlp_up")
        hidden_BTF = checkpoint_name(activate(config.activation, up_BTF, gate_BTF), "mlp_hidden")
        return Linear(config, "BTF,FD->BTD", self.precision, leave, name="down")(hidden_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); norms before, after or on both sides.

    A block of one's own (`config.model.block = "package.module:Name"`) is a Linen module with
    these fields and this call; its parameters must be in `lm.axes.PARAMETERS` too.
    """

    config: ModelConfig
    precision: PrecisionConfig
    layout: Layout

    @nn.compact
    def __call__(self, x_BTD, *, tokens_BT, rope, segment_ids_BT, window, cache, deterministic):
        """Return (x_BTD, new cache or None, aux).

        `window` is static and `rope` is this layer's, as is `cache`. `aux` holds scalars that are summed
        over the layers and reported, `{}` if there are none; what ends in `_loss` is minimized with the
        weight of that name in `config.model`.
        """
        config, layout, aux = self.config, self.layout, {}
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        x_BTD = checkpoint_name(x_BTD, "block_input")
        attention = Attention(config, self.precision, layout, name="attention")
        out_BTD, cache = attention(
            checkpoint_name(self._norm("attention_norm", x_BTD, "pre"), "attention_norm"),
            tokens_BT=tokens_BT,
            rope=rope,
            segment_ids_BT=segment_ids_BT,
            window=window,
            cache=cache,
        )
        out_BTD = self._norm("attention_post_norm", out_BTD, "post")
        x_BTD = checkpoint_name(layout.constrain(x_BTD + drop(out_BTD), "BTD"), "mlp_input")

        in_BTD = checkpoint_name(self._norm("mlp_norm", x_BTD, "pre"), "mlp_norm")
        if config.num_experts:
            out_BTD, aux = Experts(config, self.precision, layout, name="experts")(in_BTD, segment_ids_BT)
        else:
            out_BTD = FeedForward(config, self.precision, layout, name="mlp")(in_BTD, tokens_BT.shape[1])
        out_BTD = self._norm("mlp_post_norm", out_BTD, "post")
        return layout.constrain(x_BTD + drop(out_BTD), "BTD"), cache, aux

    def _norm(self, name: str, x_BTD: jax.Array, place: str) -> jax.Array:
        if self.config.norm_placement not in (place, "both"):
            return x_BTD
        return Norm(self.config, self.precision, name=name)(x_BTD)
