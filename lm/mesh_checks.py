"""What a config must be to be divided over a mesh."""

import dataclasses
import math

from lm.axes import BATCH_AXES, MESH_AXES
from lm.capabilities import Capabilities
from lm.config import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig
from lm.errors import ConfigError
from lm.fields import bad_value


def resolve_mesh(parallel: ParallelConfig, devices: int) -> ParallelConfig:
    """Fill in the axis that is -1.

    Raises:
      ConfigError: the axes do not fit the devices.
    """
    sizes = {name: getattr(parallel, name) for name in MESH_AXES}
    for name, size in sizes.items():
        if size == 0:
            raise bad_value(f"parallel.{name}", size, "at least 1, or -1 for whatever is left")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"config.parallel: only one axis may be -1, not {' and '.join(free)}.")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (not free and fixed != devices):
        named = {name: size for name, size in sizes.items() if size != 1 or name in ("data", "fsdp")}
        shape = ", ".join(f"{name}={size}" for name, size in named.items())
        raise ConfigError(
            f"config.parallel ({shape}) needs {'a multiple of ' if free else ''}{fixed} devices, but there are {devices}."
        )
    return dataclasses.replace(parallel, **dict.fromkeys(free, devices // fixed))


def check_division(config: Config, model: ModelConfig, capabilities: Capabilities) -> None:
    """Refuse what does not divide over the mesh: batches, sequences, the model.

    Args:
      config: with its mesh resolved.
      model: the resolved `config.model`.
      capabilities: of the devices.

    Raises:
      ConfigError: with the field and what it should be.
    """
    data, optimizer, parallel = config.data, config.optimizer, config.parallel
    shards = math.prod(getattr(parallel, axis) for axis in BATCH_AXES)
    if data.batch_size % (optimizer.accumulation_steps * shards):
        raise ConfigError(
            f"config.data.batch_size={data.batch_size}: expected a multiple of {optimizer.accumulation_steps * shards} "
            f"(accumulation_steps={optimizer.accumulation_steps} times {shards} batch shards)."
        )
    _check_stages(config, optimizer.accumulation_steps * shards)
    _check_context(data, model, parallel)
    _check_model(model, optimizer, parallel)
    if parallel.offload_optimizer and not capabilities.can_offload:
        raise ConfigError(
            f"config.parallel.offload_optimizer=True moves the optimizer's state to the host's memory; on "
            f"{capabilities.platform} the device's memory is the host's. Leave it out."
        )
    eval_rows = config.eval.batch_size
    eval_shards = shards * parallel.stage  # each stage keeps rows of its own
    if eval_rows is not None and eval_rows % eval_shards:
        raise ConfigError(f"config.eval.batch_size={eval_rows}: expected a multiple of the {eval_shards} batch shards.")


def _check_stages(config: Config, batch_multiple: int) -> None:
    data, last = config.data, config.optimizer.num_steps - 1
    firsts = [first for first, _, _ in data.stages]
    if firsts != sorted(set(firsts)) or (firsts and firsts[-1] > last):
        raise bad_value("data.stages", data.stages, f"first steps that ascend, up to optimizer.num_steps - 1 = {last}")
    for stage in data.stages:
        _, batch_size, length = stage
        if not batch_size or batch_size % batch_multiple:
            accepted = f"a batch_size (the second) that is a multiple of {batch_multiple}, accumulation_steps times batch shards"
            raise bad_value("data.stages", stage, accepted)
        if not length or data.sequence_length % length:
            accepted = (
                f"a sequence_length (the third) that divides data.sequence_length={data.sequence_length}, the longest"
            )
            raise bad_value("data.stages", stage, accepted)


def _check_model(model: ModelConfig, optimizer: OptimizerConfig, parallel: ParallelConfig) -> None:
    """Refuse a model that does not divide over `tensor`, `stage` and `expert`."""
    tensor, stage, repeats = parallel.tensor, parallel.stage, parallel.pipeline_repeats
    for name in ("num_heads", "d_ff", "vocab_size"):
        size = getattr(model, name)
        if size is not None and size % tensor:
            raise ConfigError(f"config.parallel.tensor={tensor}: expected a divisor of model.{name}={size}.")
    if model.num_kv_heads % tensor and tensor % model.num_kv_heads:
        raise ConfigError(
            f"config.parallel.tensor={tensor}: expected a divisor or a multiple of model.num_kv_heads="
            f"{model.num_kv_heads}."
        )
    if parallel.expert > 1 and (not model.num_experts or model.num_experts % parallel.expert):
        raise ConfigError(
            f"config.parallel.expert={parallel.expert}: expected a divisor of model.num_experts={model.num_experts}."
        )
    if stage == 1:
        if repeats > 1:
            raise ConfigError(f"config.parallel.pipeline_repeats={repeats}: without stages there is no pipeline.")
        return
    if model.num_layers % (stage * repeats * model.period):
        of_what = f"{stage} stages times {repeats} repeats" + (
            f" times a pattern of {model.period} layers" if model.period > 1 else ""
        )
        raise ConfigError(
            f"config.parallel.stage={stage}: expected model.num_layers={model.num_layers} to be a multiple of {of_what}."
        )
    if optimizer.accumulation_steps % stage:
        raise ConfigError(
            f"config.optimizer.accumulation_steps={optimizer.accumulation_steps}: the micro-batches flow through "
            f"parallel.stage={stage} stages; expected a multiple of it (4 times as many leave a fifth idle)."
        )


def _check_context(data: DataConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse sequences and heads that do not divide over the `context` axis (`lm.parallel.columns`)."""
    context, tensor = parallel.context, parallel.tensor
    if context == 1:
        return
    lengths = {"sequence_length": [data.sequence_length], "stages": [length for _, _, length in data.stages]}
    for field, values in lengths.items():
        for length in values:
            if length % (2 * context):
                raise ConfigError(
                    f"config.data.{field}={getattr(data, field)!r}: expected a sequence length that is a multiple of "
                    f"{2 * context}, two chunks for each of parallel.context={context} devices, not {length}."
                )
    heads = model.num_heads // tensor if model.num_kv_heads % tensor == 0 else model.num_heads
    if parallel.context_method == "ulysses" and heads % context:
        raise ConfigError(
            f'config.parallel.context_method="ulysses" divides the {heads} heads that a device has '
            f"(model.num_heads={model.num_heads}, parallel.tensor={tensor}) by parallel.context={context}: expected a "
            "multiple of it; use ring."
        )
