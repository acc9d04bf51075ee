"""A small model and batch for the tests of the model."""

import jax
import jax.numpy as jnp

from lm.config import apply_overrides, default
from lm.model import Transformer
from lm.resolve import resolve

SHAPES = {
    "llama": {"model.num_kv_heads": "2", "model.tie_embeddings": "False"},
    "gpt2": {
        "model.norm": "layernorm",
        "model.bias": '("query", "key", "value", "out", "up", "down", "norm")',
        "model.positions": "learned",
        "model.activation": "gelu",
    },
    "qk_norm_window_softcaps": {
        "model.qk_norm": "True",
        "model.window": "(4, None)",
        "model.attention_softcap": "20.0",
        "model.logit_softcap": "15.0",
        "model.activation": "relu2",
        "model.num_kv_heads": "1",
        "model.head_dim": "24",
    },
    "value_embeddings": {"model.value_embeddings": "True", "model.num_kv_heads": "2"},
    "gemma3": {
        "model.num_layers": "4",  # one period of three and a layer left over
        "model.window": "(4, 4, None)",
        "model.rope_base": "(1e4, 1e4, 1e6)",
        "model.rope_scaling": "linear",
        "model.rope_factor": "(1.0, 1.0, 8.0)",
        "model.norm_placement": "both",
        "model.norm_zero_centred": "True",
        "model.qk_norm": "True",
        "model.activation": "geglu",
        "model.embedding_scale": "8.0",
        "model.attention_scale": "0.2",
    },
    "mixture": {"model.num_experts": "4", "model.experts_per_token": "2", "model.d_ff": "32"},
    "geglu_no_positions": {"model.activation": "geglu", "model.positions": "none"},
}


def small_config(**overrides: str):
    config = default()
    small = {
        "model.num_layers": "2",
        "model.d_model": "64",
        "model.num_heads": "4",
        "model.vocab_size": "96",
        "data.sequence_length": "32",
    }
    apply_overrides(config, list((small | overrides).items()))
    return resolve(config)


def small_model(**overrides: str) -> Transformer:
    config = small_config(**overrides)
    return Transformer(config.model, config.precision)


def small_batch(B: int = 2, T: int = 12, documents: int = 2):
    """Return tokens, positions that restart, and segment ids."""
    tokens_BT = jax.random.randint(jax.random.key(9), (B, T), 0, 96)
    length = T // documents
    positions_BT = jnp.tile(jnp.arange(T) % length, (B, 1))
    segment_ids_BT = jnp.tile(1 + jnp.arange(T) // length, (B, 1))
    return tokens_BT, positions_BT, segment_ids_BT
