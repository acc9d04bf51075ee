"""One transformer block: pre-norm attention and feed-forward (GPT-2, Llama and between)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig
from lm.kernels.activations import GATED, activate
from lm.model.layers import Embedding, Linear, Norm, apply_rope


class Attention(nn.Module):
    """Self-attention with grouped queries, optional RoPE, QK-norm, window and key/value cache."""

    config: ModelConfig
    param_dtype: jnp.dtype
    attention: Callable  # of the signature of lm.kernels.attention.attention
    constrain: Callable

    @nn.compact
    def __call__(self, x_BTD, *, tokens_BT, rope, segment_ids_BT, window, cache):
        config, project = self.config, lambda name, spec: Linear(config, spec, self.param_dtype, name=name)(x_BTD)
        q_BTNH = project("query", "BTD,DNH->BTNH")
        k_BTKH = project("key", "BTD,DKH->BTKH")
        v_BTKH = project("value", "BTD,DKH->BTKH")
        if config.value_embeddings:
            shape = (config.vocab_size, config.num_kv_heads, config.head_dim)
            table = Embedding(
                shape, "VKH", config.embedding_std, x_BTD.dtype, self.param_dtype, self.constrain, name="value_embed"
            )
            v_BTKH = v_BTKH + table(tokens_BT)
        if config.qk_norm:  # Henry et al. 2020, Dehghani et al. 2023
            q_BTNH = Norm("rmsnorm", config.norm_epsilon, False, self.param_dtype, name="query_norm")(q_BTNH)
            k_BTKH = Norm("rmsnorm", config.norm_epsilon, False, self.param_dtype, name="key_norm")(k_BTKH)
        if rope is not None:
            q_BTNH, k_BTKH = apply_rope(q_BTNH, rope), apply_rope(k_BTKH, rope)
        q_BTNH = checkpoint_name(q_BTNH, "query")
        k_BTKH = checkpoint_name(k_BTKH, "key")
        v_BTKH = checkpoint_name(v_BTKH, "value")
        k_BSKH, v_BSKH, kv_segment_ids_BS, offset = k_BTKH, v_BTKH, segment_ids_BT, 0
        if cache is not None:
            offset, kv_segment_ids_BS = cache["length"], cache["segment_ids_BS"]
            k_BSKH = jax.lax.dynamic_update_slice_in_dim(cache["key_BSKH"], k_BTKH, offset, 1)
            v_BSKH = jax.lax.dynamic_update_slice_in_dim(cache["value_BSKH"], v_BTKH, offset, 1)
        out_BTNH = self.attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            causal=True,
            window=window,
            q_segment_ids=segment_ids_BT,
            kv_segment_ids=kv_segment_ids_BS,
            softcap=config.attention_softcap,
            q_offset=offset,
            implementation=config.attention,
        )
        out_BTNH = checkpoint_name(out_BTNH, "attention_out")
        out_BTD = Linear(config, "BTNH,NHD->BTD", self.param_dtype, residual=True, name="out")(out_BTNH)
        return out_BTD, None if cache is None else {"key_BSKH": k_BSKH, "value_BSKH": v_BSKH}


class FeedForward(nn.Module):
    """SwiGLU or GeGLU (Shazeer 2020), GELU (GPT-2's tanh form) or squared ReLU (So et al. 2021)."""

    config: ModelConfig
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD):
        config, gate_BTF = self.config, None
        project = lambda name: Linear(config, "BTD,DF->BTF", self.param_dtype, name=name)(x_BTD)  # noqa: E731
        up_BTF = checkpoint_name(project("up"), "mlp_up")
        if config.activation in GATED:
            gate_BTF = checkpoint_name(project("gate"), "mlp_gate")
        hidden_BTF = checkpoint_name(activate(config.activation, up_BTF, gate_BTF), "mlp_hidden")
        return Linear(config, "BTF,FD->BTD", self.param_dtype, residual=True, name="down")(hidden_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    A block of one's own (`config.model.block = "package.module:Name"`) is a Linen module with
    these fields and this call; its parameters must be in `lm.axes.PARAMETERS` too.
    """

    config: ModelConfig
    param_dtype: jnp.dtype
    attention: Callable
    constrain: Callable  # (x, "BTD") -> x with the mesh's sharding laid over it

    @nn.compact
    def __call__(self, x_BTD, *, tokens_BT, rope, segment_ids_BT, window, cache, deterministic):
        """Return (x_BTD, new cache or None); `window` is static, `cache` this layer's part."""
        config = self.config
        norm = lambda name: Norm(config.norm, config.norm_epsilon, config.bias, self.param_dtype, name=name)  # noqa: E731
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        attend = Attention(config, self.param_dtype, self.attention, self.constrain, name="attention")
        x_BTD = checkpoint_name(x_BTD, "block_input")
        out_BTD, cache = attend(
            checkpoint_name(norm("attention_norm")(x_BTD), "attention_norm"),
            tokens_BT=tokens_BT,
            rope=rope,
            segment_ids_BT=segment_ids_BT,
            window=window,
            cache=cache,
        )
        x_BTD = checkpoint_name(self.constrain(x_BTD + drop(out_BTD), "BTD"), "mlp_input")
        in_BTD = checkpoint_name(norm("mlp_norm")(x_BTD), "mlp_norm")
        out_BTD = FeedForward(config, self.param_dtype, name="mlp")(in_BTD)
        return self.constrain(x_BTD + drop(out_BTD), "BTD"), cache
