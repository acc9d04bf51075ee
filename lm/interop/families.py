"""Hugging Face's model families: what of our `config.model` each can express, and its config.json.

A family is chosen by what it can express, the simplest first; a model that none can is refused by the field that
the nearest lacks. Numbers are equal, not close: a family is here only where its forward pass is ours
(tests/peer/test_families.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lm.config import ModelConfig
from lm.errors import ConfigError
from lm.interop import names

Check = tuple | Callable[[ModelConfig], bool]

ATTENTION, FEED_FORWARD = ("query", "key", "value", "out"), ("gate", "up", "down")
_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh", "gelu": "gelu_new", "relu2": "relu2"}


def _windows(model: ModelConfig) -> set[int]:
    return {window for window in model.window if window is not None}


def _one_window(model: ModelConfig) -> bool:
    """Sliding and full layers may alternate; sliding ones share one width."""
    return len(_windows(model)) <= 1


def _scale_is_standard(model: ModelConfig) -> bool:
    return model.attention_scale is None or abs(model.attention_scale * model.head_dim**0.5 - 1) < 1e-6


def _query_scalar(model: ModelConfig) -> float:
    """Gemma's query_pre_attn_scalar, which must be an integer there."""
    return model.head_dim if model.attention_scale is None else model.attention_scale**-2


def _embeddings_scaled_by_width(model: ModelConfig) -> bool:
    return abs(model.embedding_scale / model.d_model**0.5 - 1) < 1e-6


def _by_layer_kind(field: str) -> Callable[[ModelConfig], bool]:
    """Layers with a window share one value of a field, and those without share another."""

    def check(model: ModelConfig) -> bool:
        values = {kind: set() for kind in (True, False)}
        for layer in range(max(model.period, 1)):
            values[model.per_layer("window", layer) is None].add(model.per_layer(field, layer))
        return all(len(found) <= 1 and None not in found for found in values.values())

    return check


# What every family here needs of our config, unless it says otherwise.
_STANDARD: Mapping[str, Check] = {
    "block": ("transformer",),
    "value_embeddings": (False,),
    "mup_base_width": (None,),
    "positions": ("rope",),
    "norm": ("rmsnorm",),
    "norm_placement": ("pre",),
    "norm_zero_centred": (False,),
    "qk_norm": (False,),
    "num_experts": (None,),
    "expert_capacity": (None,),
    "activation": ("swiglu", "geglu"),
    "bias": (),
    "embedding_scale": (1.0,),
    "attention_scale": _scale_is_standard,
    "attention_softcap": (None,),
    "logit_softcap": (None,),
    "window": lambda model: not _windows(model),
    "rope_base": lambda model: len(set(model.rope_base)) == 1 and None not in model.rope_base,
    "rope_factor": lambda model: len(set(model.rope_factor)) == 1,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One of Hugging Face's model classes.

    Attributes:
      model_type, architecture: in its config.json.
      names: its tensors.
      accepts: field of `config.model` -> accepted values, or a check; on top of what all families accept.
      biases: key of its config.json -> our names of the linear layers that it gives a bias, all or none of them;
        the key None: always.
      settings: what else its config.json says.
    """

    model_type: str
    architecture: str
    names: names.Names
    accepts: Mapping[str, Check]
    biases: Mapping[str | None, tuple[str, ...]]
    settings: Callable[[ModelConfig], dict[str, Any]]

    def misfits(self, model: ModelConfig) -> list[str]:
        """Return the fields that this family cannot express, the plainest first."""
        known = {name for group in self.biases.values() for name in group}
        checks = {**_STANDARD, **self.accepts, "bias": lambda model: set(model.bias) <= known}
        return [
            field
            for field, check in checks.items()
            if not (check(model) if callable(check) else getattr(model, field) in check)
        ]

    def bias_flags(self, model: ModelConfig) -> dict[str, bool]:
        """Return the keys of config.json that say which biases there are."""
        return {key: bool(set(group) & set(model.bias)) for key, group in self.biases.items() if key}

    def zero_biases(self, model: ModelConfig) -> frozenset[str]:
        """Return the paths of biases that the family has where the model has none."""
        needed = [group for key, group in self.biases.items() if key is None or set(group) & set(model.bias)]
        lacking = {name for group in needed for name in group} - set(model.bias)
        paths = {path for ours in self.names.values() for path in ((ours,) if isinstance(ours, str) else ours)}
        return frozenset(path for path in paths if path.endswith("/bias") and _bias_name(path) in lacking)


def _bias_name(path: str) -> str:
    layer = path.split("/")[-2]
    return "norm" if layer.endswith("norm") else layer


def _gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": model.d_model,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.d_ff,
        "n_positions": model.max_positions,
        "n_ctx": model.max_positions,
        "activation_function": _ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_epsilon,
        "attn_pdrop": 0.0,
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
    }


def _llama(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": _ACTIVATIONS[model.activation],
        "rms_norm_eps": model.norm_epsilon,
        "attention_dropout": 0.0,
        **_rope(model),
    }


def _layer_types(model: ModelConfig) -> dict[str, Any]:
    windows = [model.per_layer("window", layer) for layer in range(model.num_layers)]
    return {
        "sliding_window": max(_windows(model), default=None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def _qwen(model: ModelConfig) -> dict[str, Any]:
    has_windows = bool(_windows(model))
    return {**_llama(model), **_layer_types(model), "use_sliding_window": has_windows, "max_window_layers": 0}


def _gemma(model: ModelConfig) -> dict[str, Any]:
    return {
        **_llama(model),
        **_layer_types(model),
        "sliding_window": max(_windows(model), default=2**20),  # asked for where no layer has a window too
        "hidden_activation": _ACTIVATIONS[model.activation],
        "query_pre_attn_scalar": round(_query_scalar(model)),
        "attn_logit_softcapping": model.attention_softcap,
        "final_logit_softcapping": model.logit_softcap,
    }


def _gemma3(model: ModelConfig) -> dict[str, Any]:
    kinds = {}
    for layer in range(model.period):
        kind = "full_attention" if model.per_layer("window", layer) is None else "sliding_attention"
        kinds[kind] = (model.per_layer("rope_base", layer), model.per_layer("rope_factor", layer))
    kinds = {kind: kinds.get(kind, next(iter(kinds.values()))) for kind in ("sliding_attention", "full_attention")}
    by_kind = {kind: _rope_parameters(model, *values) for kind, values in kinds.items()}
    local, whole = kinds.values()
    old = {**_old_rope(model, *whole), "rope_local_base_freq": local[0]}
    return {**_gemma(model), **old, "rope_parameters": by_kind}


def _gemma3_rope(model: ModelConfig) -> bool:
    """Both kinds of layer have one base and one factor; in the form of version 4 only full layers are extended."""
    local = {model.per_layer("rope_factor", i) for i in range(model.period) if model.per_layer("window", i)}
    return _by_layer_kind("rope_factor")(model) and local <= {1.0}


def _rope_parameters(model: ModelConfig, base: float, factor: float) -> dict[str, Any]:
    """Return RoPE in the form of transformers 5."""
    kind = "default" if factor == 1 else model.rope_scaling
    settings: dict[str, Any] = {"rope_type": kind, "rope_theta": base}
    if kind != "default":
        settings["factor"] = factor
    if kind in ("llama3", "yarn"):
        settings["original_max_position_embeddings"] = model.rope_original_length
    if kind == "llama3":
        settings["low_freq_factor"], settings["high_freq_factor"] = model.rope_llama3_bounds
    if kind == "yarn":
        settings["beta_slow"], settings["beta_fast"] = model.rope_yarn_bounds
    return settings


def _old_rope(model: ModelConfig, base: float, factor: float) -> dict[str, Any]:
    """Return RoPE in the form of transformers 4."""
    scaling = {key: value for key, value in _rope_parameters(model, base, factor).items() if key != "rope_theta"}
    return {"rope_theta": base, "rope_scaling": None if scaling["rope_type"] == "default" else scaling}


def _rope(model: ModelConfig) -> dict[str, Any]:
    kind = model.rope_base[0], model.rope_factor[0]
    return {**_old_rope(model, *kind), "rope_parameters": _rope_parameters(model, *kind)}


def _mistral(model: ModelConfig) -> dict[str, Any]:
    return {**_llama(model), "sliding_window": model.window[0]}


def _mixtral(model: ModelConfig) -> dict[str, Any]:
    return {**_mistral(model), "num_local_experts": model.num_experts, "num_experts_per_tok": model.experts_per_token}


def _qwen3_moe(model: ModelConfig) -> dict[str, Any]:
    return {
        **_qwen(model),
        "moe_intermediate_size": model.d_ff,
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


_UNIFORM: Check = lambda model: len(set(model.window)) == 1  # noqa: E731
_ANY: Check = lambda model: True  # noqa: E731
_EXPERTS: Check = lambda model: model.num_experts is not None  # noqa: E731
_GEMMA: Mapping[str, Check] = {
    "norm_placement": ("both",),
    "norm_zero_centred": (True,),
    "embedding_scale": _embeddings_scaled_by_width,
    "attention_scale": lambda model: abs(_query_scalar(model) - round(_query_scalar(model))) < 1e-6,
    "window": _one_window,
}
_OPTIONAL = {"attention_bias": ATTENTION}

FAMILIES: tuple[Family, ...] = (
    Family("llama", "LlamaForCausalLM", names.LLAMA, {}, {**_OPTIONAL, "mlp_bias": FEED_FORWARD}, _llama),
    Family("mistral", "MistralForCausalLM", names.LLAMA, {"window": _UNIFORM}, {}, _mistral),
    Family("qwen2", "Qwen2ForCausalLM", names.LLAMA, {"window": _one_window}, {None: ATTENTION[:3]}, _qwen),
    Family("qwen3", "Qwen3ForCausalLM", names.LLAMA, {"qk_norm": (True,), "window": _one_window}, _OPTIONAL, _qwen),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        names.GEMMA,
        {**_GEMMA, "attention_softcap": _ANY, "logit_softcap": _ANY},
        _OPTIONAL,
        _gemma,
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        names.GEMMA,
        {**_GEMMA, "qk_norm": (True,), "rope_base": _by_layer_kind("rope_base"), "rope_factor": _gemma3_rope},
        _OPTIONAL,
        _gemma3,
    ),
    Family("mixtral", "MixtralForCausalLM", names.MIXTRAL, {"num_experts": _EXPERTS, "window": _UNIFORM}, {}, _mixtral),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        names.QWEN3_MOE,
        {"num_experts": _EXPERTS, "qk_norm": (True,), "window": _one_window},
        {},
        _qwen3_moe,
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        names.GPT2,
        {
            "positions": ("learned",),
            "norm": ("layernorm",),
            "activation": ("gelu", "relu2"),
            "num_kv_heads": lambda model: model.num_kv_heads == model.num_heads,
            "head_dim": lambda model: model.head_dim * model.num_heads == model.d_model,
            "rope_base": _ANY,
            "rope_factor": _ANY,
        },
        {None: (*ATTENTION, "up", "down", "norm")},
        _gpt2,
    ),
)


def family_of(model: ModelConfig) -> Family:
    """Return the family that expresses a resolved model exactly: with the fewest biases of 0, the first of these.

    Raises:
      ConfigError: none does; names the first field that the nearest family cannot express.
    """
    misfits = {family: family.misfits(model) for family in FAMILIES}
    nearest = min(FAMILIES, key=lambda family: (len(misfits[family]), len(family.zero_biases(model))))
    if not misfits[nearest]:
        return nearest
    field = misfits[nearest][0]
    raise ConfigError(
        f"config.model.{field}={getattr(model, field)!r}: no Hugging Face family that lm knows computes that; "
        f"the nearest is {nearest.architecture}."
    )


def config_json(family: Family, model: ModelConfig, *, max_positions: int, eot_id: int, dtype: str) -> dict[str, Any]:
    """Return the content of config.json, readable by transformers 4 and 5.

    Args:
      family: of `family_of`.
      model: resolved.
      max_positions: tokens that the model was trained on at a time.
      eot_id: opens a document and ends it.
      dtype: of the stored weights.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.embedding_std,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "use_cache": True,
        "dtype": dtype,  # of transformers 5
        "torch_dtype": dtype,  # of transformers 4
        **family.bias_flags(model),
        **family.settings(model),
    }
