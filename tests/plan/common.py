"""Configs of real sizes for hardware that is described without a compiler."""

from lm.capabilities import Capabilities
from lm.config import Config, apply_overrides, default
from lm.presets import preset
from lm.resolve import resolve

V5E = Capabilities(platform="tpu", device_kind="TPU v5 lite")
V5P = Capabilities(platform="tpu", device_kind="TPU v5")


def config_of(name: str = "llama_1b", devices: int = 16, capabilities: Capabilities = V5E, **overrides: str) -> Config:
    """Return a preset resolved for so many devices: ZeRO 3 over all of them, bf16, two rows of 2,048 on each."""
    config = default()
    config.model.update(preset(name))
    config.precision.compute = "bfloat16"
    config.data.sequence_length = 2048
    config.data.batch_size = 2 * devices
    config.parallel.data = 1
    config.parallel.fsdp = -1
    apply_overrides(config, list(overrides.items()))
    return resolve(config, devices=devices, capabilities=capabilities)
