"""From plain data to a validated `Config`, and what identifies it.

`resolve` checks every field and what involves more than one of them, before any array exists;
`fingerprint` names a run.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm.axes import ACTIVATIONS
from lm.capabilities import EXPERTS, FLOAT8_MATMUL, AttentionCall, Capabilities
from lm.config import (
    OPTIMIZERS,
    SOURCES,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    remat_names,
)
from lm.errors import ConfigError, did_you_mean
from lm.fields import bad_value, build
from lm.mesh_checks import check_division, resolve_mesh


def resolve(config_dict: Mapping, devices: int = 1, capabilities: Capabilities | None = None) -> Config:
    """Validate plain data into a `Config`, before any array exists.

    Args:
      config_dict: nested mapping (a ConfigDict or the dict of a `config.json`).
      devices: how many devices the run has; the mesh must fit them.
      capabilities: what they can do; None: a CPU.

    Returns:
      The config with `parallel` sizes, `num_kv_heads`, `head_dim`, `d_ff`, `max_positions` and
      `model.attention` filled in. `vocab_size` stays None until the tokenizer is known.

    Raises:
      ConfigError: names the field's path, the value and what is accepted.
    """
    plain = config_dict.to_dict() if hasattr(config_dict, "to_dict") else config_dict
    config = build(Config, plain, "")
    return _check_whole(config, devices, capabilities or Capabilities())


_EXTENSION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _check_extension(path: str, value: str, builtin: Sequence[str]) -> None:
    if value not in builtin and not _EXTENSION.fullmatch(value):
        raise ConfigError(
            f'config.{path}={value!r}: expected one of {", ".join(builtin)}, or "package.module:Name".'
            f"{did_you_mean(value, builtin)}"
        )


def _check_whole(config: Config, devices: int, capabilities: Capabilities) -> Config:
    """Fill in derived fields and check what involves more than one field."""
    parallel = resolve_mesh(config.parallel, devices)
    config = dataclasses.replace(config, parallel=parallel)
    model = _check_model(config, capabilities)
    _check_precision(config.precision, capabilities)
    data, optimizer = config.data, config.optimizer
    _check_extension("objective", config.objective, ("next_token",))
    _check_extension("data.source", data.source, tuple(SOURCES))
    _check_source(data)
    _check_mixture(data)
    if data.validation_fraction + data.test_fraction >= 1:
        raise ConfigError(
            f"config.data.validation_fraction={data.validation_fraction} and test_fraction={data.test_fraction} "
            "leave nothing to train on; their sum must be less than 1."
        )
    if optimizer.warmup_steps >= optimizer.num_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps}: expected fewer than num_steps={optimizer.num_steps}."
        )
    _check_optimizer(optimizer, config.precision)
    profile = config.log.profile
    if profile and not (len(profile) == 2 and profile[0] <= profile[1]):
        raise bad_value("log.profile", profile, "() or (first step, last step)")
    for name in config.log.sinks:
        if not _EXTENSION.fullmatch(name):
            raise bad_value("log.sinks", name, '"package.module:Name"')
    check_division(config, model, capabilities)
    if config.eval.stride is not None and config.eval.stride > data.sequence_length:
        raise ConfigError(
            f"config.eval.stride={config.eval.stride}: expected at most data.sequence_length={data.sequence_length}."
        )
    checkpoint = config.checkpoint
    if checkpoint.keep_best and checkpoint.every_steps % config.eval.every_steps:
        raise ConfigError(
            f"config.checkpoint.keep_best={checkpoint.keep_best}: checkpoints must be evaluated at their steps; expected "
            f"checkpoint.every_steps={checkpoint.every_steps} to be a multiple of "
            f"eval.every_steps={config.eval.every_steps}."
        )
    return dataclasses.replace(config, model=model)


def _check_source(data: DataConfig) -> None:
    """Refuse a source without its path, and settings that it would ignore."""
    if SOURCES.get(data.source) and not data.path:
        raise ConfigError(f'config.data.path=None: the source "{data.source}" needs {SOURCES[data.source]}.')
    only = {"sha256": "download", "subset": "huggingface", "split": "huggingface", "revision": "huggingface"}
    for name, source in only.items():
        value = getattr(data, name)
        if data.source != source and data.source in SOURCES and value != getattr(DataConfig, name):
            raise ConfigError(f"config.data.{name}={value!r} is for the source {source!r}, not for {data.source!r}.")
    if data.source == "shards" and data.max_documents is not None:
        raise ConfigError(f'config.data.max_documents={data.max_documents}: not for the source "shards".')


def _check_mixture(data: DataConfig) -> None:
    """Refuse a mixture that says too little or too much; whether the data has its domains is not known here."""
    steps = sorted({step for step, _, _ in data.mixture})
    if steps and steps[0]:
        raise ConfigError(f"config.data.mixture={data.mixture!r}: expected a domain from step 0 on.")
    for step in steps:
        stage = [(domain, weight) for first, domain, weight in data.mixture if first == step]
        if len({domain for domain, _ in stage}) < len(stage):
            raise ConfigError(f"config.data.mixture={data.mixture!r}: expected each domain once at step {step}.")
        if not any(weight for _, weight in stage):
            raise ConfigError(f"config.data.mixture={data.mixture!r}: expected a weight above 0 at step {step}.")
    if len(dict(data.max_epochs)) < len(data.max_epochs):
        raise bad_value("data.max_epochs", data.max_epochs, "each domain once")


def _check_optimizer(optimizer: OptimizerConfig, precision: PrecisionConfig) -> None:
    _check_extension("optimizer.name", optimizer.name, OPTIMIZERS)
    names = [name for name, _ in optimizer.options]
    if names and optimizer.name in OPTIMIZERS:
        raise ConfigError(
            f'config.optimizer.options={optimizer.options!r}: only an optimizer named "package.module:Name" takes '
            f"options; {optimizer.name} has fields of its own."
        )
    if len(set(names)) < len(names):
        raise bad_value("optimizer.options", optimizer.options, "each argument once")
    for field in ("lr_multipliers", "weight_decay_multipliers"):
        for pattern, _ in getattr(optimizer, field):
            try:
                re.compile(pattern)
            except re.error as error:
                raise bad_value(f"optimizer.{field}", pattern, f"a regular expression ({error})") from error
    if optimizer.name == "schedule_free" and precision.parameters != "float32":
        raise ConfigError(
            f"config.precision.parameters={precision.parameters!r}: schedule_free's parameters are an average whose "
            "increments shrink as 1/t and would be rounded away; use float32."
        )
    momentumless = optimizer.name == "schedule_free" or (
        optimizer.name == "adafactor" and not optimizer.adafactor_momentum
    )
    if precision.moments != "float32" and momentumless:
        hint = "set adafactor_momentum or " if optimizer.name == "adafactor" else ""
        raise ConfigError(
            f"config.precision.moments={precision.moments!r}: {optimizer.name} keeps no first moment; {hint}use float32."
        )


def _check_model(config: Config, capabilities: Capabilities) -> ModelConfig:
    model = config.model
    _check_extension("model.block", model.block, ("transformer",))
    _check_remat(config, capabilities)
    if model.head_dim is None and model.d_model % model.num_heads:
        raise ConfigError(
            f"config.model.num_heads={model.num_heads}: expected a divisor of d_model={model.d_model}, or set head_dim."
        )
    head_dim = model.head_dim or model.d_model // model.num_heads
    kv_heads = model.num_kv_heads or model.num_heads
    if model.num_heads % kv_heads:
        raise ConfigError(f"config.model.num_kv_heads={kv_heads}: expected a divisor of num_heads={model.num_heads}.")
    if model.positions == "rope" and head_dim % 2:
        raise ConfigError(f"config.model.head_dim={head_dim}: RoPE rotates pairs, so it must be even.")
    for name in ("window", "rope_base", "rope_factor"):
        if not getattr(model, name):
            raise bad_value(f"model.{name}", getattr(model, name), "one value or more, repeated over the layers")
    _check_rope(model)
    if "norm" in model.bias and model.norm == "rmsnorm":
        raise ConfigError('config.model.bias: "norm" needs norm="layernorm"; RMSNorm has no bias.')
    if model.initializer == "mup" and model.mup_base_width is None:
        raise ConfigError('config.model.initializer="mup": set mup_base_width, the d_model that was tuned.')
    if model.num_experts and model.experts_per_token > model.num_experts:
        raise bad_value("model.experts_per_token", model.experts_per_token, f"at most num_experts={model.num_experts}")
    max_positions = model.max_positions
    if model.positions == "learned":
        max_positions = max_positions or config.data.sequence_length
    if model.positions == "learned" and max_positions < config.data.sequence_length:
        raise ConfigError(
            f"config.model.max_positions={max_positions}: expected at least "
            f"data.sequence_length={config.data.sequence_length}."
        )
    gated = model.activation in ("swiglu", "geglu")
    d_ff = model.d_ff or (64 * math.ceil(8 * model.d_model / 3 / 64) if gated else 4 * model.d_model)
    return dataclasses.replace(
        model,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=d_ff,
        max_positions=max_positions,
        attention=_check_attention(config, capabilities, head_dim),
        experts=_check_experts(config, capabilities),
        scan_unroll=capabilities.scan_unroll_for(model.scan_unroll, model.num_layers // model.period, model.remat),
    )


def _check_rope(model: ModelConfig) -> None:
    extended = any(factor > 1 for factor in model.rope_factor)
    if extended and model.rope_scaling == "none":
        raise ConfigError(f"config.model.rope_factor={model.rope_factor!r}: choose a rope_scaling for it.")
    if extended and model.rope_scaling in ("llama3", "yarn") and model.rope_original_length is None:
        raise ConfigError(
            f'config.model.rope_scaling="{model.rope_scaling}": set rope_original_length, the context before it.'
        )
    for name in ("rope_llama3_bounds", "rope_yarn_bounds"):
        low, high = getattr(model, name)
        if low >= high:
            raise bad_value(f"model.{name}", (low, high), "a lower bound less than the upper one")


def _check_experts(config: Config, capabilities: Capabilities) -> str:
    name, known = config.model.experts, ("auto", *EXPERTS)
    if name not in known:
        raise ConfigError(
            f"config.model.experts={name!r}: expected one of {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return capabilities.experts_for(name)


def _check_attention(config: Config, capabilities: Capabilities, head_dim: int) -> str:
    model, data, context = config.model, config.data, config.parallel.context
    is_ring = context > 1 and config.parallel.context_method == "ring"
    call = AttentionCall(
        dtype=config.precision.compute,
        head_dim=head_dim,
        num_queries=data.sequence_length,
        segment_ids=data.document_mask,
        window=any(model.window),
        softcap=model.attention_softcap is not None,
        lse=is_ring,  # by which its parts are merged
    )
    name = capabilities.attention_for(model.attention, call)
    support = capabilities.attention.get(name)
    if support is None:
        accepted = ["auto", *capabilities.attention]
        raise ConfigError(
            f"config.model.attention={name!r}: expected one of {', '.join(accepted)}.{did_you_mean(name, accepted)}"
        )
    if capabilities.platform not in support.platforms:
        raise ConfigError(
            f"config.model.attention={name!r} runs on {', '.join(support.platforms)}, not on "
            f"{capabilities.platform}; use auto."
        )
    if lacking := support.lacks(call):
        setting = {
            "dtype": f"precision.compute={config.precision.compute!r} (it takes {', '.join(support.dtypes)})",
            "head_dim": f"model.head_dim={head_dim}",
            "num_queries": f"data.sequence_length={data.sequence_length} (at least {support.min_queries})",
            "segment_ids": "data.document_mask=True (packed documents)",
            "window": f"model.window={model.window!r}",
            "softcap": f"model.attention_softcap={model.attention_softcap}",
            "lse": f"parallel.context={context} (ring attention)",
        }[lacking]
        raise ConfigError(f"config.model.attention={name!r} cannot honour config.{setting}; use auto.")
    return name


def _check_precision(precision: PrecisionConfig, capabilities: Capabilities) -> None:
    if precision.stochastic_rounding and precision.parameters != "bfloat16":
        raise ConfigError(
            f"config.precision.stochastic_rounding=True rounds bfloat16 parameters, but precision.parameters="
            f"{precision.parameters!r}; set it to bfloat16, or leave the rounding out."
        )
    if precision.matmul == "float8" and not capabilities.has_float8:
        raise ConfigError(
            f"config.precision.matmul='float8': {capabilities.device_kind} has no float8 matmuls "
            f"({', '.join(FLOAT8_MATMUL)} have); use default."
        )


def _check_remat(config: Config, capabilities: Capabilities) -> None:
    policy, custom_block = config.model.remat, ":" in config.model.block
    if policy in ("none", "full"):
        return
    kept, offloaded = remat_names(policy)
    for name in (*kept, *offloaded):
        accepted = (*ACTIVATIONS, "dots") if name in kept else tuple(ACTIVATIONS)
        if name not in accepted and not (custom_block and name.isidentifier()):  # a block names what it likes
            everything = ("none", "full", *accepted)
            raise ConfigError(
                f"config.model.remat={policy!r}: {name!r} is not the name of an activation; expected none, full, dots, "
                f"or some of {', '.join(ACTIVATIONS)}, separated by commas and after offload: those that go to the "
                f"host.{did_you_mean(name, everything)}"
            )
    both = set(kept) & set(offloaded)
    if both or not (kept or offloaded):
        raise ConfigError(
            f"config.model.remat={policy!r}: expected each name once, and at least one"
            f"{f', but {sorted(both)[0]} is both kept and offloaded' if both else ''}."
        )
    if offloaded and not capabilities.can_offload:
        raise ConfigError(
            f"config.model.remat={policy!r} moves activations to the host's memory; on {capabilities.platform} the "
            f"device's memory is the host's. Name them without offload:."
        )


def canonical(config: Config) -> dict[str, Any]:
    """Return what identifies a run: fields that differ from their defaults and can change its numbers."""

    def differing(section, reference) -> dict[str, Any]:
        out = {}
        for field in dataclasses.fields(section):
            value, standard = getattr(section, field.name), getattr(reference, field.name)
            if dataclasses.is_dataclass(value):
                inner = differing(value, standard)
                if inner:
                    out[field.name] = inner
            elif value != standard and field.metadata["identity"]:
                out[field.name] = value
        return out

    return differing(config, _check_whole(Config(), devices=1, capabilities=Capabilities()))


def fingerprint(config: Config, *, manifest_hash: str | None = None, init_from: str | None = None) -> str:
    """Return the sha256 that names a run: 64 hexadecimal digits.

    Paths, logging, cadences and fields at their defaults do not enter; data enters as its
    manifest's hash, a starting checkpoint as its own run's fingerprint.
    """
    identity = {"config": canonical(config), "data": manifest_hash, "init_from": init_from}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """Fill in `model.vocab_size` (the tokenizer's, padded to a multiple of 128), or check the one that is set.

    Raises:
      ConfigError: the model's vocabulary is smaller than the tokenizer's.
    """
    wanted = config.model.vocab_size
    if wanted is not None and wanted < vocab_size:
        raise ConfigError(
            f"config.model.vocab_size={wanted}: the tokenizer has {vocab_size} tokens; expected at least that."
        )
    padded, tensor = wanted or 128 * math.ceil(vocab_size / 128), config.parallel.tensor
    if padded % tensor:
        raise ConfigError(
            f"config.model.vocab_size={wanted}: set a multiple of parallel.tensor={tensor}, at least {vocab_size}."
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=padded))
