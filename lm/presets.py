"""Shapes by name: a ladder from 250 thousand to 70 billion parameters, and the public families.

    config.model.update(preset("llama_1b"))

A preset sets the fields of `config.model` that make the architecture, `vocab_size` among them; set that
to None again to take it from the tokenizer. `lm inspect --preset all` lists them with their sizes.
Counts equal the published ones (`tests/model/test_presets.py`).
"""

from collections.abc import Mapping
from typing import Any

from lm.errors import ConfigError, did_you_mean

Shape = Mapping[str, Any]


def _shape(family: Shape, layers: int, width: int, heads: int, kv_heads: int, d_ff: int, **rest: Any) -> Shape:
    sizes = {"num_layers": layers, "d_model": width, "num_heads": heads, "num_kv_heads": kv_heads, "d_ff": d_ff}
    return {**family, **sizes, **rest}


# Radford et al. 2019.
_GPT2 = {
    "norm": "layernorm",
    "norm_epsilon": 1e-5,
    "bias": ("query", "key", "value", "out", "up", "down", "norm"),
    "activation": "gelu",
    "positions": "learned",
    "max_positions": 1024,
    "vocab_size": 50257,
}
# Touvron et al. 2023.
_LLAMA = {"norm_epsilon": 1e-5, "tie_embeddings": False, "vocab_size": 32000}
_LLAMA3 = {**_LLAMA, "vocab_size": 128256, "rope_base": (500_000.0,)}
_LLAMA3_1 = {**_LLAMA3, "rope_scaling": "llama3", "rope_factor": (8.0,), "rope_original_length": 8192}
_LLAMA3_2 = {**_LLAMA3_1, "rope_factor": (32.0,), "tie_embeddings": True}
# Jiang et al. 2023 and 2024.
_MISTRAL = {**_LLAMA, "window": (4096,)}
_MIXTRAL = {**_LLAMA, "rope_base": (1e6,), "num_experts": 8, "experts_per_token": 2}
# Yang et al. 2024 (Qwen2, Qwen2.5) and 2025 (Qwen3).
_QWEN2 = {"bias": ("query", "key", "value"), "rope_base": (1e6,), "vocab_size": 151936, "tie_embeddings": True}
_QWEN2_UNTIED = {**_QWEN2, "vocab_size": 152064, "tie_embeddings": False}
_QWEN3 = {"qk_norm": True, "head_dim": 128, "rope_base": (1e6,), "vocab_size": 151936, "tie_embeddings": True}
_QWEN3_UNTIED = {**_QWEN3, "tie_embeddings": False}


def _gemma(layers: int, width: int, heads: int, kv_heads: int, d_ff: int, query_scalar: float, **rest: Any) -> Shape:
    family = {
        "norm_placement": "both",
        "norm_zero_centred": True,
        "activation": "geglu",
        "tie_embeddings": True,
        "embedding_scale": width**0.5,
        "attention_scale": query_scalar**-0.5,
        "head_dim": 256,
    }
    return _shape(family, layers, width, heads, kv_heads, d_ff, **rest)


# Gemma Team 2024 and 2025: local layers between global ones.
_GEMMA2 = {"vocab_size": 256000, "window": (4096, None), "attention_softcap": 50.0, "logit_softcap": 30.0}
_GEMMA3 = {"vocab_size": 262144, "qk_norm": True, "rope_base": (1e4,) * 5 + (1e6,), "window": (1024,) * 5 + (None,)}
_GEMMA3_LONG = {**_GEMMA3, "vocab_size": 262208, "rope_scaling": "linear", "rope_factor": (1.0,) * 5 + (8.0,)}

PRESETS: Mapping[str, Shape] = {
    # The ladder, Llama's architecture at every size; 7b to 70b are Llama 2's.
    "llama_250k": _shape(_LLAMA, 4, 64, 4, 2, 224, vocab_size=512, tie_embeddings=True),
    "llama_1m": _shape(_LLAMA, 4, 128, 4, 2, 384, vocab_size=2048, tie_embeddings=True),
    "llama_10m": _shape(_LLAMA, 8, 256, 8, 4, 704, vocab_size=16384, tie_embeddings=True),
    "llama_30m": _shape(_LLAMA, 8, 512, 8, 4, 1408, vocab_size=16384, tie_embeddings=True),
    "llama_100m": _shape(_LLAMA, 12, 768, 12, 4, 2048, tie_embeddings=True),
    "llama_350m": _shape(_LLAMA, 24, 1024, 16, 8, 2816),
    "llama_1b": _shape(_LLAMA, 16, 2048, 32, 8, 8192),
    "llama_3b": _shape(_LLAMA, 28, 3072, 24, 8, 8192),
    "llama_7b": _shape(_LLAMA, 32, 4096, 32, 32, 11008),
    "llama_13b": _shape(_LLAMA, 40, 5120, 40, 40, 13824),
    "llama_70b": _shape(_LLAMA, 80, 8192, 64, 8, 28672),
    "gpt2": _shape(_GPT2, 12, 768, 12, 12, 3072),
    "gpt2_medium": _shape(_GPT2, 24, 1024, 16, 16, 4096),
    "gpt2_large": _shape(_GPT2, 36, 1280, 20, 20, 5120),
    "gpt2_xl": _shape(_GPT2, 48, 1600, 25, 25, 6400),
    "llama3_8b": _shape(_LLAMA3, 32, 4096, 32, 8, 14336),
    "llama3_70b": _shape(_LLAMA3, 80, 8192, 64, 8, 28672),
    "llama3.1_8b": _shape(_LLAMA3_1, 32, 4096, 32, 8, 14336),
    "llama3.1_70b": _shape(_LLAMA3_1, 80, 8192, 64, 8, 28672),
    "llama3.2_1b": _shape(_LLAMA3_2, 16, 2048, 32, 8, 8192),
    "llama3.2_3b": _shape(_LLAMA3_2, 28, 3072, 24, 8, 8192),
    "mistral_7b": _shape(_MISTRAL, 32, 4096, 32, 8, 14336),
    "mixtral_8x7b": _shape(_MIXTRAL, 32, 4096, 32, 8, 14336),
    "qwen2_0.5b": _shape(_QWEN2, 24, 896, 14, 2, 4864),
    "qwen2_1.5b": _shape(_QWEN2, 28, 1536, 12, 2, 8960),
    "qwen2_7b": _shape(_QWEN2_UNTIED, 28, 3584, 28, 4, 18944),
    "qwen2_72b": _shape(_QWEN2_UNTIED, 80, 8192, 64, 8, 29568),
    "qwen2.5_3b": _shape(_QWEN2, 36, 2048, 16, 2, 11008),
    "qwen2.5_14b": _shape({**_QWEN2_UNTIED, "norm_epsilon": 1e-5}, 48, 5120, 40, 8, 13824),
    "qwen2.5_32b": _shape({**_QWEN2_UNTIED, "norm_epsilon": 1e-5}, 64, 5120, 40, 8, 27648),
    "qwen3_0.6b": _shape(_QWEN3, 28, 1024, 16, 8, 3072),
    "qwen3_1.7b": _shape(_QWEN3, 28, 2048, 16, 8, 6144),
    "qwen3_4b": _shape(_QWEN3, 36, 2560, 32, 8, 9728),
    "qwen3_8b": _shape(_QWEN3_UNTIED, 36, 4096, 32, 8, 12288),
    "qwen3_14b": _shape(_QWEN3_UNTIED, 40, 5120, 40, 8, 17408),
    "qwen3_32b": _shape(_QWEN3_UNTIED, 64, 5120, 64, 8, 25600),
    "qwen3_30b_a3b": _shape(_QWEN3_UNTIED, 48, 2048, 32, 4, 768, num_experts=128, experts_per_token=8),
    "gemma2_2b": _gemma(26, 2304, 8, 4, 9216, 256, **_GEMMA2),
    "gemma2_9b": _gemma(42, 3584, 16, 8, 14336, 256, **_GEMMA2),
    "gemma2_27b": _gemma(46, 4608, 32, 16, 36864, 144, head_dim=128, **_GEMMA2),
    "gemma3_1b": _gemma(26, 1152, 4, 1, 6912, 256, **{**_GEMMA3, "window": (512,) * 5 + (None,)}),
    "gemma3_4b": _gemma(34, 2560, 8, 4, 10240, 256, **_GEMMA3_LONG),
    "gemma3_12b": _gemma(48, 3840, 16, 8, 15360, 256, **_GEMMA3_LONG),
    "gemma3_27b": _gemma(62, 5376, 32, 16, 21504, 168, head_dim=128, **_GEMMA3_LONG),
}


def preset(name: str) -> dict[str, Any]:
    """Return the fields of `config.model` that a preset sets.

    Raises:
      ConfigError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f'no preset "{name}".{did_you_mean(name, PRESETS)} `lm inspect --preset all` lists all {len(PRESETS)}.'
        )
    return dict(PRESETS[name])
