"""A training step's time from first principles: the longest of what overlaps, and what does not overlap.

Williams et al. 2009; for transformers on TPUs, "How to Scale Your Model" (Austin et al. 2025), part 5.
"""

import dataclasses
import math
from collections.abc import Mapping

from jax.sharding import Mesh

from lm.axes import optimizer_axes, parameter_axes
from lm.config import Config
from lm.model.flops import flops_per_token
from lm.model.memory import layer_bytes
from lm.plan.assumptions import (
    ACTIVATION_PASSES,
    ATTENTION_BACKWARD,
    ATTENTION_BLOCKWISE,
    EXPOSED,
    LINK_EFFICIENCY,
    MEMORY_EFFICIENCY,
    efficiency,
)
from lm.plan.chips import chip
from lm.plan.links import bandwidth, latency
from lm.plan.recompute import recomputed
from lm.plan.transfers import CONTEXT, STAGE, TENSOR, Transfer, held_elements, itemsize, transfers

_KERNELS = ("tpu", "cudnn")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds per optimizer step, and what they come to."""

    compute: float  # matmuls and attention, what is recomputed included
    memory: float  # traffic of the device's own memory during forward and backward passes
    optimizer: float  # the update: every byte of the state read and written
    host: float  # traffic to the host's memory, hidden behind compute
    hidden: float  # communication that compute may hide
    exposed: float  # communication that it may not
    bubble: float  # share of the time that a pipeline idles
    by_axes: Mapping[tuple[str, ...], float]  # seconds of communication by mesh axes
    transfers: tuple[Transfer, ...]
    tokens: int  # per step
    devices: int
    model_flops: float  # per token, causal attention at half
    full_flops: float  # per token, every query sees every key: how others counted attention
    peak_flops: float  # of a device

    @property
    def seconds(self) -> float:
        busy = max(self.compute, self.memory, self.hidden, self.host) + EXPOSED * self.hidden + self.exposed
        return busy / (1 - self.bubble) + self.optimizer

    @property
    def binding(self) -> str:
        """What the step spends the most on."""
        parts = {
            "compute": self.compute,
            "memory bandwidth": self.memory,
            "host bandwidth": self.host,
            "communication that hides behind compute": self.hidden,
            "communication that compute waits for": self.exposed,
            "optimizer update": self.optimizer,
        }
        return max(parts, key=parts.get)

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens / self.seconds / self.devices

    @property
    def communication_share(self) -> float:
        """Share of the step that waits for communication."""
        longest = max(self.compute, self.memory, self.host)
        waits = max(0.0, self.hidden - longest) + EXPOSED * self.hidden + self.exposed
        return waits / (1 - self.bubble) / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: forward and backward, nothing recomputed, causal attention at half."""
        return self.model_flops * self.tokens_per_second_per_device / self.peak_flops

    @property
    def mfu_full_attention(self) -> float:
        """The same with attention counted as if nothing were masked (MaxText until July 2025)."""
        return self.full_flops * self.tokens_per_second_per_device / self.peak_flops


def predict(config: Config, mesh: Mesh, peak_flops: float | None) -> Prediction | None:
    """Return the step's predicted time on a mesh, or None for hardware without published figures.

    Args:
      config: resolved for the mesh, with its `vocab_size`.
      mesh: of real or abstract devices; where they stand decides the bandwidths.
      peak_flops: of a device in the compute type (`Capabilities.peak_flops`).
    """
    kind = mesh.devices.flat[0].device_kind
    figures, share = chip(kind), efficiency(kind)
    if figures is None or share is None or peak_flops is None:
        return None
    sizes = dict(mesh.shape)
    sent = transfers(config, sizes)
    seconds = {t: _seconds(t, mesh) for t in sent}
    by_axes: dict[tuple[str, ...], float] = {}
    for t, s in seconds.items():
        by_axes[t.axes] = by_axes.get(t.axes, 0.0) + s
    length = config.data.sequence_length
    device_memory, host_bytes = _memory_traffic(config, sizes)
    stages = sizes.get(STAGE, 1)
    rounds = config.optimizer.accumulation_steps * config.parallel.pipeline_repeats
    return Prediction(
        compute=_compute_seconds(config, mesh.size, peak_flops, share),
        memory=device_memory / (figures.memory_bandwidth * MEMORY_EFFICIENCY),
        optimizer=_optimizer_traffic(config, sizes) / (figures.memory_bandwidth * MEMORY_EFFICIENCY),
        host=host_bytes / figures.host_bandwidth,
        hidden=sum(s for t, s in seconds.items() if t.hidden),
        exposed=sum(s for t, s in seconds.items() if not t.hidden),
        bubble=(stages - 1) / (rounds + stages - 1),
        by_axes=by_axes,
        transfers=tuple(sent),
        tokens=config.data.batch_size * length,
        devices=mesh.size,
        model_flops=3 * sum(flops_per_token(config.model, length).values()),
        full_flops=3 * sum(_unmasked(config).values()),
        peak_flops=peak_flops,
    )


def _unmasked(config: Config) -> dict[str, float]:
    """Return forward FLOPs per token with attention to all keys of the row."""
    parts = dict(flops_per_token(config.model, config.data.sequence_length))
    model = config.model
    return parts | {"attention": 4 * model.num_heads * model.head_dim * config.data.sequence_length * model.num_layers}


def _compute_seconds(config: Config, devices: int, peak: float, share) -> float:
    parts = flops_per_token(config.model, config.data.sequence_length)
    again, model = recomputed(config.model), config.model
    projections = parts["attention_projections"]
    out = projections * model.num_heads / (2 * model.num_heads + 2 * model.num_kv_heads)
    matmuls = 3 * (projections + parts["feed_forward"] + parts["head"])
    matmuls += again.projections * (projections - out) + again.out * out + again.feed_forward * parts["feed_forward"]
    attention = parts["attention"] * (1 + ATTENTION_BACKWARD + again.attention)
    tokens = config.data.batch_size * config.data.sequence_length / devices
    speed = share.attention * (1 if model.attention in _KERNELS else ATTENTION_BLOCKWISE)
    return tokens * (matmuls / share.matmul + attention / speed) / peak


def _memory_traffic(config: Config, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Return the bytes of forward and backward passes per step: (of the device's memory, of the host's)."""
    micro, c, model = config.optimizer.accumulation_steps, itemsize(config), config.model
    whole = held_elements(config, parameter_axes(0), mesh)
    # Read forward, for what is recomputed and backward; their f32 gradients are written, and added to the sum.
    weights = micro * whole * (c * (2 + (model.remat != "none")) + 4 * (1 if micro == 1 else 3))
    rows = config.data.batch_size / micro / math.prod(mesh.get(a, 1) for a in mesh if a not in (STAGE, CONTEXT, TENSOR))
    per_layer, offloaded = layer_bytes(
        model, rows=rows, length=config.data.sequence_length, itemsize=c, split=model_split(mesh)
    )
    layers = model.num_layers / mesh.get(STAGE, 1) * micro
    tokens = rows * config.data.sequence_length * micro / math.prod(mesh.get(a, 1) for a in (CONTEXT, TENSOR, STAGE))
    logits = tokens * model.vocab_size * (4 * 2 + c * 2)
    return weights + ACTIVATION_PASSES * per_layer * layers + logits, 2 * offloaded * layers


def model_split(mesh: Mapping[str, int]) -> dict[str, int]:
    """Return letter -> into how many parts the mesh divides that dimension of a layer's activations."""
    tensor, context = mesh.get(TENSOR, 1), mesh.get(CONTEXT, 1)
    return {"N": tensor, "K": tensor, "F": tensor, "V": tensor, "T": context, "stream": tensor}


def _optimizer_traffic(config: Config, mesh: Mapping[str, int]) -> float:
    """Return the bytes that the update reads and writes: parameters, moments and gradients."""
    elements = held_elements(config, optimizer_axes(config.parallel.zero), mesh)
    moments = 4.0 * (1 if config.optimizer.name in ("muon", "lion") else 2)
    parameter = 2 if config.precision.parameters == "bfloat16" else 4
    return elements * (2 * parameter + 2 * moments + 4)


def _seconds(transfer: Transfer, mesh: Mesh) -> float:
    """Return a transfer's seconds per step. On a ring the blocks of an all-to-all travel group / 4 hops."""
    hops = max(1.0, transfer.group / 4) if transfer.kind == "all-to-all" else 1.0
    sending = hops * transfer.sent_bytes / (bandwidth(mesh, transfer.axes) * LINK_EFFICIENCY)
    return sending + transfer.count * latency(mesh, transfer.axes)
