"""What a training step needs of one device's memory, from first principles: for any mesh, no compiler.

The step's arguments are the state's shards and the batch. Beside them are there throughout

    accumulated gradients, f32, where there are several micro-batches
    activations that are kept (`lm/model/memory.py`), divided by tensor and context parallelism; a pipeline keeps those
        of all its micro-batches
    below ZeRO 3 a copy of all layers in the compute type

and the worst of three moments of a micro-batch; R are the embedding's and the head's parameters, c the bytes of the
compute type:

    loss      the moment of the loss, the head (c) with its f32 gradient, and at stage 3 a layer that is gathered ahead
    backward  the worst moment of a layer, the head's gradient (c), this micro-batch's gradients of the layers, f32 (at
              stage 3 each is scattered as it is made, at 2 when all are there), and at stage 3 two gathered layers
    end       all gradients of the micro-batch, R whole in f32 twice, in the activations' place

`lm plan` compares the sum with the compiler's peak wherever it compiles.
"""

import dataclasses
import math
from collections.abc import Mapping

from lm.axes import gradient_axes, parameter_axes
from lm.config import Config
from lm.model.memory import activation_bytes
from lm.parallel.state_bytes import held_bytes
from lm.plan.roofline import model_split
from lm.plan.transfers import CONTEXT, STAGE, TENSOR, held_elements, itemsize

_BATCH_ARRAYS = 6  # of 4 bytes a token: see `lm/train/aot.py`


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    parameters: int
    optimizer: int
    average: int  # the parameters' moving average
    batch: int
    gradients: int  # accumulated ones and those of the micro-batch at hand
    activations: int  # kept from the forward to the backward pass
    working: int  # the worst moment
    gathered: int  # parameters that are whole, or in the compute type, for a time, and their gradients
    host: int  # offloaded to the host's memory

    @property
    def arguments(self) -> int:
        """What is there between steps."""
        return self.parameters + self.optimizer + self.average + self.batch

    @property
    def temporaries(self) -> int:
        """What a step needs beside it."""
        return self.gradients + self.activations + self.working + self.gathered

    @property
    def total(self) -> int:
        """The peak."""
        return self.arguments + self.temporaries


def memory(config: Config, mesh: Mapping[str, int]) -> Memory:
    """Return the memory of a resolved config's step.

    Args:
      config: with its `vocab_size`.
      mesh: axis -> size.
    """
    model, zero, micro, c = config.model, config.parallel.zero, config.optimizer.accumulation_steps, itemsize(config)
    state = held_bytes(config, mesh)
    stages = mesh.get(STAGE, 1)
    rows = config.data.batch_size / micro / math.prod(n for a, n in mesh.items() if a not in (STAGE, CONTEXT, TENSOR))
    length = config.data.sequence_length
    parameter_size = 2 if config.precision.parameters == "bfloat16" else 4
    activations = activation_bytes(
        model,
        model.remat,
        batch=rows,
        length=length,
        itemsize=c,
        parameter_itemsize=parameter_size,
        split=model_split(mesh),
    )
    in_flight = micro + stages - 1 if stages > 1 else 1
    accumulated = 4 * held_elements(config, gradient_axes(config.parallel.zero), mesh) if micro > 1 else 0
    kept = activations.kept // stages * in_flight
    worst = max(_moments(config, mesh, activations.moments, c, kept), key=lambda moment: moment.total)
    tokens = config.data.batch_size * length // math.prod(n for a, n in mesh.items() if a not in (STAGE, TENSOR))
    layers = held_elements(config, parameter_axes(0), mesh, "layers/")
    return Memory(
        parameters=state["parameters"],
        optimizer=0 if config.parallel.offload_optimizer else state["optimizer"],
        average=state.get("average", 0),
        batch=4 * _BATCH_ARRAYS * tokens,
        gradients=worst.gradients + accumulated,
        activations=kept,
        working=worst.working,
        gathered=worst.gathered + (layers * c if zero < 3 and c < parameter_size else 0),
        host=activations.offloaded // stages * in_flight
        + (state["optimizer"] if config.parallel.offload_optimizer else 0),
    )


@dataclasses.dataclass(frozen=True)
class _Moment:
    """Bytes at one moment of a micro-batch."""

    working: int
    gradients: int
    gathered: int  # parameters that are whole for a time, and their gradients

    @property
    def total(self) -> int:
        return self.working + self.gradients + self.gathered


def _moments(
    config: Config, mesh: Mapping[str, int], activations: Mapping[str, int], c: int, kept: int
) -> list[_Moment]:
    """Return the moments of the loss, the backward pass and the end."""
    whole, layers = (held_elements(config, parameter_axes(0), mesh, prefix) for prefix in ("", "layers/"))
    rest, zero = whole - layers, config.parallel.zero
    head = rest if config.model.tie_embeddings else rest // 2
    is_gathered = zero == 3 and held_elements(config, parameter_axes(3), mesh) < whole
    layer = layers // max(1, config.model.num_layers // mesh.get(STAGE, 1)) if is_gathered else 0
    own = 4 * held_elements(config, parameter_axes(zero), mesh, "layers/")
    work = max(size for name, size in activations.items() if name != "loss")
    return [
        _Moment(activations["loss"], 0, (c + 4) * head + c * layer),
        _Moment(work, own, c * head + 2 * c * layer),
        _Moment(0, own, max(0, 8 * rest - kept)),  # where the activations were
    ]
