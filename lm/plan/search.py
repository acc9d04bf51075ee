"""Other ways to run the same training: meshes, ZeRO stages, remat policies and micro-batches, from first principles.

None of them changes what is learned: the global batch stays, and so do the model and the optimizer.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from lm.axes import BATCH_AXES, MESH_AXES
from lm.config import Config
from lm.parallel.topology import Topology
from lm.plan.memory import memory
from lm.plan.plan import Plan, make_plan, within
from lm.plan.transfers import CONTEXT, EXPERT, REPLICATED, SHARED, STAGE, TENSOR

# From the most memory to the least. `dots` and the third keep what is dear to compute again.
POLICIES = ("none", "dots", "query,key,value,attention_out,mlp_input", "attention_out", "full", "offload:block_input")
_LONG = 16384  # tokens of a row, from which on dividing it is worth trying


def change(config: Config, *, remat: str | None = None, micro: int | None = None, **parallel: int) -> Config:
    """Return a config with another remat policy, number of micro-batches, ZeRO stage or mesh."""
    model, optimizer = config.model, config.optimizer
    if remat is not None:
        model = dataclasses.replace(model, remat=remat)
    if micro is not None:
        optimizer = dataclasses.replace(optimizer, accumulation_steps=micro)
    return dataclasses.replace(
        config, model=model, optimizer=optimizer, parallel=dataclasses.replace(config.parallel, **parallel)
    )


def overrides(config: Config, before: Config) -> list[str]:
    """Return what to append to a command line to get from one config to another."""
    out = []
    for section, names in (
        ("parallel", (*config.parallel.__dataclass_fields__,)),
        ("model", ("remat",)),
        ("optimizer", ("accumulation_steps",)),
    ):
        for name in names:
            value = getattr(getattr(config, section), name)
            if value != getattr(getattr(before, section), name):
                out.append(f"--config.{section}.{name}={value}")
    return out


def is_possible(config: Config) -> bool:
    """Whether the batch and the model divide over the mesh as `resolve` and the step ask."""
    parallel, model = config.parallel, config.model
    shards = math.prod(getattr(parallel, axis) for axis in BATCH_AXES)
    micro, stages = config.optimizer.accumulation_steps, getattr(parallel, STAGE)
    tensor, context = getattr(parallel, TENSOR), getattr(parallel, CONTEXT)
    return (
        config.data.batch_size % (micro * shards) == 0
        and model.num_heads % tensor == 0
        and model.d_ff % tensor == 0
        and config.data.sequence_length % (context * tensor) == 0
        and model.num_layers % (stages * parallel.pipeline_repeats * model.period) == 0
        and (stages == 1 or micro >= stages)
        and (model.num_experts or 1) % getattr(parallel, EXPERT) == 0
    )


def micro_batches(config: Config) -> list[int]:
    """Return the possible numbers of micro-batches, fewest first."""
    shards = math.prod(getattr(config.parallel, axis) for axis in BATCH_AXES)
    rows = config.data.batch_size // shards
    return [n for n in range(1, rows + 1) if rows % n == 0] if config.data.batch_size % shards == 0 else []


def meshes(config: Config, devices: int) -> Iterator[dict[str, int]]:
    """Yield sizes of the axes for so many devices; the slices stay."""
    inside, model = devices // config.parallel.slices, config.model
    tensors = [t for t in (1, 2, 4, 8, 16) if model.num_kv_heads % t == 0 and inside % t == 0]
    contexts = [c for c in (1, 2, 4, 8) if c == 1 or config.data.sequence_length >= _LONG]
    experts = [e for e in (1, 2, 4, 8) if e == 1 or (model.num_experts and model.num_experts % e == 0)]
    stages = [s for s in (1, 2, 4) if s == 1 or devices >= 256]
    for tensor, context, expert, stage in itertools.product(tensors, contexts, experts, stages):
        rest, remainder = divmod(inside, tensor * context * expert * stage)
        if remainder:
            continue
        for data in (n for n in range(1, rest + 1) if rest % n == 0):
            if data & (data - 1) == 0:  # powers of two
                sizes = {TENSOR: tensor, CONTEXT: context, EXPERT: expert, STAGE: stage}
                yield sizes | {REPLICATED[-1]: data, SHARED: rest // data}


def candidates(config: Config, topology: Topology) -> Iterator[Config]:
    """Yield every possible way to run a config that the formulas say fits."""
    limit, offloads = topology.capabilities.memory_bytes, topology.capabilities.can_offload
    policies = [p for p in POLICIES if offloads or "offload" not in p]
    for sizes in meshes(config, topology.num_devices):
        on_mesh = change(config, **sizes)
        stages = range(4) if sizes[SHARED] > 1 else (0,)
        for zero, remat, micro in itertools.product(stages, policies, micro_batches(on_mesh)):
            one = change(on_mesh, remat=remat, micro=micro, zero=zero)
            if is_possible(one) and (limit is None or within(memory(one, mesh_of(one)).total, limit)):
                yield one


def mesh_of(config: Config) -> dict[str, int]:
    """Return axis -> size of a resolved config."""
    return {axis: getattr(config.parallel, axis) for axis in MESH_AXES}


def search(config: Config, topology: Topology, *, best: int = 5) -> list[Plan]:
    """Return the fastest ways to run a config that fit, by the roofline; empty if none does.

    Of equally fast ones (within 1 %) the one with the least memory, then with the fewest axes, comes first.
    """
    plans = [make_plan(one, topology) for one in _promising(candidates(config, topology))]
    known = [plan for plan in plans if plan.prediction is not None]
    return sorted(known, key=_rank)[:best]


def _promising(configs: Iterable[Config]) -> Iterator[Config]:
    """Of the numbers of micro-batches that fit, keep the fewest: more only repeat the gathers."""
    seen: set = set()
    for config in configs:
        key = (config.parallel, config.model.remat)
        if config.parallel.stage > 1 or key not in seen:
            seen.add(key)
            yield config


def _rank(plan: Plan) -> tuple:
    axes = sum(size > 1 for size in plan.mesh.shape.values())
    return (round(math.log(plan.prediction.seconds) / 0.01), axes, plan.memory.total)


def compare(config: Config, topology: Topology, policies: Sequence[str] = POLICIES) -> list[Plan]:
    """Return plans for every ZeRO stage and remat policy, everything else as it is."""
    usable = [p for p in policies if topology.capabilities.can_offload or "offload" not in p]
    return [
        make_plan(change(config, remat=remat, zero=zero), topology)
        for zero, remat in itertools.product(range(4), usable)
    ]
