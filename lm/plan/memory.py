"""What a training step needs of one device's memory, from first principles: for any mesh, no compiler.

The step's arguments are the state's shards and the batch. Beside them the worst moment of a micro-batch's backward
pass holds

    accumulated gradients, f32, where there are several micro-batches
    this micro-batch's gradients, f32: at stage 3 each layer's are scattered as they are made, at 2 when all are there
    activations, kept and of the worst moment (`lm/model/memory.py`), divided by tensor and context parallelism; a
        pipeline keeps those of all its micro-batches
    at stage 3 two layers' parameters, gathered in the compute type, and one layer's whole gradients; below it a copy
        of all layers in the compute type
    embedding and head, whole over `fsdp`, in the compute type, and their gradients in f32

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
    working: int  # the worst moment of a layer or the loss
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
    accumulated = 4 * held_elements(config, gradient_axes(zero), mesh)
    at_hand = 4 * held_elements(config, parameter_axes(zero), mesh)
    tokens = config.data.batch_size * length // math.prod(n for a, n in mesh.items() if a not in (STAGE, TENSOR))
    return Memory(
        parameters=state["parameters"],
        optimizer=0 if config.parallel.offload_optimizer else state["optimizer"],
        average=state.get("average", 0),
        batch=4 * _BATCH_ARRAYS * tokens,
        gradients=at_hand + (accumulated if micro > 1 else 0),
        activations=activations.kept // stages * in_flight,
        working=activations.moment,
        gathered=_gathered(config, mesh, c, parameter_size),
        host=activations.offloaded // stages * in_flight
        + (state["optimizer"] if config.parallel.offload_optimizer else 0),
    )


def _gathered(config: Config, mesh: Mapping[str, int], c: int, parameter_size: int) -> int:
    whole = held_elements(config, parameter_axes(0), mesh)
    layers = held_elements(config, parameter_axes(0), mesh, "layers/")
    if config.parallel.zero == 3 and whole > held_elements(config, parameter_axes(3), mesh):
        layer = layers // (config.model.num_layers // mesh.get(STAGE, 1))
        return (2 * c + 4) * layer + (c + 4) * (whole - layers)
    return (layers * c if c < parameter_size else 0) + (whole - layers) * (c if c < parameter_size else 0)
