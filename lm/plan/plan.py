"""One config on one topology: memory, communication and time, predicted and, where it was compiled, compiled."""

import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh

from lm.axes import MESH_AXES
from lm.config import Config, ParallelConfig
from lm.parallel.topology import CompiledStats, Topology, topology_mesh
from lm.plan.collectives import Collective, collectives
from lm.plan.memory import Memory, memory
from lm.plan.roofline import Prediction, predict
from lm.train.aot import compile_step

# How far the memory formulas may be from the compiler's peak (tests/aot/test_experiments.py): between, only compiling decides.
MARGIN = 0.10


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config's step takes on each device of a topology."""

    config: Config
    topology: Topology
    mesh: Mesh
    memory: Memory  # from first principles
    prediction: Prediction | None  # None: hardware without published figures
    compiled: CompiledStats | None = None
    collectives: tuple[Collective, ...] = ()  # of the compiled program

    @property
    def limit(self) -> int | None:
        """Bytes that a program may use; None: not known."""
        return self.topology.capabilities.memory_bytes

    @property
    def peak(self) -> int:
        """The compiler's peak, or the formulas' where nothing was compiled."""
        return self.compiled.peak_bytes if self.compiled else self.memory.total

    @property
    def fits(self) -> bool | None:
        """Whether the device can hold it; None: only compiling can say, or the device is not known."""
        if self.limit is None:
            return None
        if self.compiled:
            return self.compiled.fits
        return within(self.memory.total, self.limit)


def within(total: int, limit: int) -> bool | None:
    """Return whether analytic bytes fit, None where the formulas' own error decides."""
    if total * (1 + MARGIN) <= limit:
        return True
    return False if total * (1 - MARGIN) > limit else None


def make_plan(config: Config, topology: Topology, *, compiled: bool = False, optimize: bool = True) -> Plan:
    """Return the plan of a config that is resolved for a topology, with its `vocab_size`.

    Args:
      config: the run.
      topology: its hardware.
      compiled: compile the real training step too: a minute or two for a pod.
      optimize: see `lm.parallel.topology.compile_for`.
    """
    mesh = _mesh(topology, tuple(getattr(config.parallel, axis) for axis in MESH_AXES))
    peak = topology.capabilities.peak_flops(config.precision.compute)
    plan = Plan(config, topology, mesh, memory(config, dict(mesh.shape)), predict(config, mesh, peak))
    if not compiled:
        return plan
    stats = compile_step(config, topology, optimize=optimize)
    found = tuple(collectives(stats.text, mesh)) if stats.text else ()
    return dataclasses.replace(plan, compiled=stats, collectives=found)


@functools.lru_cache(maxsize=1024)
def _mesh(topology: Topology, sizes: tuple[int, ...]) -> Mesh:
    return topology_mesh(topology, ParallelConfig(**dict(zip(MESH_AXES, sizes, strict=True))))


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data: bytes, seconds, shares."""
    out: dict[str, Any] = {
        "topology": plan.topology.name,
        "devices": plan.topology.num_devices,
        "device_kind": plan.topology.capabilities.device_kind,
        "mesh": {axis: size for axis, size in plan.mesh.shape.items() if size > 1},
        "zero": plan.config.parallel.zero,
        "remat": plan.config.model.remat,
        "micro_batches": plan.config.optimizer.accumulation_steps,
        "bytes_per_device": {**dataclasses.asdict(plan.memory), "total": plan.memory.total},
        "limit_bytes": plan.limit,
        "fits": plan.fits,
    }
    if plan.compiled:
        stats = plan.compiled
        out["compiled"] = {
            "peak_bytes": stats.peak_bytes,
            "argument_bytes": stats.argument_bytes,
            "temporary_bytes": stats.temporary_bytes,
            "host_bytes": stats.host_bytes,
            "seconds": stats.seconds,
            "collectives": [{**dataclasses.asdict(c), "sent_bytes": c.sent_bytes} for c in plan.collectives],
        }
    if plan.prediction:
        p = plan.prediction
        out["prediction"] = {
            "step_seconds": p.seconds,
            "binding": p.binding,
            "tokens_per_second_per_device": p.tokens_per_second_per_device,
            "mfu": p.mfu,
            "mfu_full_attention": p.mfu_full_attention,
            "communication_share": p.communication_share,
            "seconds": {
                name: getattr(p, name) for name in ("compute", "memory", "optimizer", "host", "hidden", "exposed")
            },
            "bubble": p.bubble,
            "tokens_per_step": p.tokens,
            "model_flops_per_token": p.model_flops,
            "transfers": [{**dataclasses.asdict(t), "sent_bytes": t.sent_bytes} for t in p.transfers],
        }
    return out
