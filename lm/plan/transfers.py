"""What a training step sends along which mesh axes, from first principles: as the step is written, no compiler.

c is the bytes of the compute type. Each micro-batch, on each device:

    ZeRO 3      every layer's parameters gathered over `fsdp`, in the compute type, forward and again backward, 2 L + 1
                times in all; their gradients scattered, in f32; embedding and head gathered and scattered once
    ZeRO 2      the gradients scattered over `fsdp`, in f32
    tensor      per layer, with sequence-parallel norms (Korthikanti et al. 2022): an all-gather and a reduce-scatter
                of B T D c around attention and around the feed-forward, forward and backward, and what of the forward
                pass is recomputed
    context     ring: keys and values go around, backward with their gradients; Ulysses: queries, keys, values and the
                output change places
    expert      tokens go to their experts' devices and back
    stage       activations go to the next stage

and each step: the gradients' all-reduce over the replicas (of their `fsdp` shards from ZeRO 1 on, with the scatter
before it at stage 1), each micro-batch over `context`, and at stages 1 and 2 the gather of the updated parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

from lm.axes import (
    ACTIVATION_AXES,
    BATCH_AXES,
    MESH_AXES,
    MODEL_AXES,
    PARAMETERS,
    SHARDED_AXES,
    gradient_axes,
    parameter_axes,
    partition,
)
from lm.config import Config, ModelConfig
from lm.model.flops import parameter_shapes
from lm.plan.collectives import sent_bytes
from lm.plan.recompute import recomputed

# Mesh axes by what they divide, from the tables.
SHARED, TENSOR, STAGE, EXPERT = SHARDED_AXES["D"][0], MODEL_AXES["F"][0], MODEL_AXES["L"][0], MODEL_AXES["E"][0]
CONTEXT = ACTIVATION_AXES["T"][0]
REPLICATED = tuple(axis for axis in BATCH_AXES if axis not in (SHARED, EXPERT))


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One purpose of communication."""

    what: str
    kind: str  # of the collective
    axes: tuple[str, ...]
    group: int
    bytes: float  # payload of one, as `lm.plan.collectives.Collective` counts it
    count: float  # per optimizer step
    hidden: bool  # behind the compute of the layer before or after it, where there is enough of it

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends per optimizer step."""
        return self.count * sent_bytes(self.kind, self.bytes, self.group)


def transfers(config: Config, mesh: Mapping[str, int]) -> list[Transfer]:
    """Return a step's transfers for a resolved config; empty on one device.

    Args:
      config: with its `vocab_size`.
      mesh: axis -> size.
    """
    found = [*_parameters(config, mesh), *_activations(config, mesh)]
    return [t for t in found if t.group > 1 and t.count and t.bytes]


def itemsize(config: Config) -> int:
    """Return the bytes of the compute type."""
    return 4 if config.precision.compute == "float32" else 2


def held_elements(config: Config, table: Mapping, mesh: Mapping[str, int], prefix: str = "") -> int:
    """Return the elements that one device holds of the parameters under a path, sharded by a table."""
    shapes = dataclasses.replace(config.model, remat="none")  # which changes none: a search asks for the same again
    return _held(shapes, tuple(table.items()), tuple(mesh.items()), prefix)


@functools.lru_cache(maxsize=4096)
def _held(model: ModelConfig, table: tuple, mesh: tuple, prefix: str) -> int:
    table, mesh = dict(table), dict(mesh)

    def pieces(path: str, shape: tuple[int, ...]) -> int:
        return math.prod(mesh[axis] for axes in partition(PARAMETERS[path], shape, table, mesh) for axis in axes or ())

    shapes = parameter_shapes(model).items()
    return sum(math.prod(shape) // pieces(path, shape) for path, shape in shapes if path.startswith(prefix))


def _parameters(config: Config, mesh: Mapping[str, int]) -> list[Transfer]:
    zero, micro, c = config.parallel.zero, config.optimizer.accumulation_steps, itemsize(config)
    passes = micro if mesh.get(STAGE, 1) == 1 else 1  # a pipeline's stage keeps its layers over the micro-batches
    share, out = mesh.get(SHARED, 1), []
    whole, layers = _sharded(config, mesh, ""), _sharded(config, mesh, "layers/")
    count = config.model.num_layers // mesh.get(STAGE, 1)

    def one(what: str, kind: str, size: float, times: float, hidden: bool = True) -> None:
        out.append(Transfer(what, kind, (SHARED,), share, size, times, hidden))

    if zero == 3:
        one("layers' parameters, forward and backward", "all-gather", layers / count * c, (2 * count + 1) * passes)
        one("layers' gradients", "reduce-scatter", layers / count * 4, count * passes)
        one("embedding and head", "all-gather", (whole - layers) * c, passes, False)
        one("embedding's and head's gradients", "reduce-scatter", (whole - layers) * 4, passes, False)
    elif zero == 2:
        one("gradients", "reduce-scatter", whole * 4, micro)
    elif zero == 1:
        one("gradients", "reduce-scatter", whole * 4, 1, False)
    if zero in (1, 2):
        one(
            "updated parameters",
            "all-gather",
            whole * (2 if config.precision.parameters == "bfloat16" else 4),
            1,
            False,
        )
    # What is left to sum over the other rows; experts that are spread over devices see the rows of all of them.
    replicas = (*REPLICATED, *((SHARED,) if zero == 0 else ()))
    shard = held_elements(config, gradient_axes(2 if zero else 0), mesh)
    experts = held_elements(config, gradient_axes(2 if zero else 0), mesh, "layers/experts/")
    spread = experts if mesh.get(EXPERT, 1) > 1 else 0
    sums = [("gradients", (*replicas, EXPERT), shard - spread, 1), ("experts' gradients", replicas, spread, 1)]
    sums.append(("gradients of the sequence's parts", (CONTEXT,), shard, micro))
    for what, axes, size, times in sums:
        over = tuple(axis for axis in MESH_AXES if axis in axes and mesh.get(axis, 1) > 1)
        group = math.prod(mesh[axis] for axis in over)
        out.append(Transfer(what, "all-reduce", over, group, size * 4, times, False))
    return out


def _sharded(config: Config, mesh: Mapping[str, int], prefix: str) -> float:
    """Return the elements, whole over `fsdp`, of the parameters that ZeRO shards: all but vectors."""
    parts, whole = mesh.get(SHARED, 1), held_elements(config, parameter_axes(0), mesh, prefix)
    if parts == 1:
        return 0
    return (whole - held_elements(config, parameter_axes(3), mesh, prefix)) * parts / (parts - 1)


def _activations(config: Config, mesh: Mapping[str, int]) -> list[Transfer]:
    model, micro, c = config.model, config.optimizer.accumulation_steps, itemsize(config)
    rows = config.data.batch_size // micro // math.prod(mesh.get(axis, 1) for axis in (*REPLICATED, SHARED, EXPERT))
    length = config.data.sequence_length // mesh.get(CONTEXT, 1)
    stream, layers = rows * length * model.d_model * c, model.num_layers // mesh.get(STAGE, 1) * micro
    again = recomputed(model)
    tensor, context, expert, stage = (mesh.get(axis, 1) for axis in (TENSOR, CONTEXT, EXPERT, STAGE))
    # Forward and backward; recomputed are the gathers before what is recomputed, and attention's scatter.
    gathers = 4 + (again.projections > 0) + (again.feed_forward > 0)
    scatters = 4 + (again.out > 0)
    found = [
        Transfer("sequence before a sublayer", "all-gather", (TENSOR,), tensor, stream, gathers * layers, False),
        Transfer("sums after a sublayer", "reduce-scatter", (TENSOR,), tensor, stream, scatters * layers, False),
        Transfer(
            "sums of the vocabulary's parts", "all-reduce", (TENSOR,), tensor, stream * 2 // max(1, stage), micro, False
        ),
    ]
    heads = model.num_heads // tensor
    kv_heads = max(1, model.num_kv_heads // tensor)
    keys = 2 * rows * length * kv_heads * model.head_dim * c
    if config.parallel.context_method == "ring":
        # Forward and what is recomputed send keys and values; backward these and their f32 gradients.
        rounds = (1 + again.attention) * keys + keys + keys * 4 // c
        found.append(
            Transfer("keys and values", "collective-permute", (CONTEXT,), context, rounds, (context - 1) * layers, True)
        )
    else:
        size = 2 * rows * length * heads * model.head_dim * c + keys
        times = (2 + again.attention) * layers
        found.append(Transfer("heads for sequence", "all-to-all", (CONTEXT,), context, size, times, False))
    if model.num_experts:
        sent = stream * model.experts_per_token
        times = 2 * (2 + (again.feed_forward > 0)) * layers
        found.append(Transfer("tokens to experts", "all-to-all", (EXPERT,), expert, sent, times, False))
    hops = 2 * (micro * config.parallel.pipeline_repeats + stage - 1) if stage > 1 else 0
    found.append(Transfer("activations to the next stage", "collective-permute", (STAGE,), stage, stream, hops, False))
    return found
