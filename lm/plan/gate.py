"""The launch gate: a config that will not fit is refused before anything is allocated, with what would make it fit."""

from collections.abc import Iterator

from lm.axes import MESH_AXES
from lm.capabilities import Capabilities
from lm.config import Config
from lm.errors import ConfigError
from lm.plan.memory import memory
from lm.plan.plan import within
from lm.plan.search import POLICIES, change, is_possible, mesh_of, meshes, micro_batches, overrides
from lm.plan.transfers import SHARED, STAGE, TENSOR


def check_fits(config: Config, capabilities: Capabilities) -> None:
    """Refuse a config whose training step will not fit into a device's memory.

    Refused is what the formulas of `lm/plan/memory.py` put beyond their own error; what is closer may start. Devices
    whose memory is not known hold everything.

    Args:
      config: resolved for the devices that there are, with its `vocab_size`.
      capabilities: theirs.

    Raises:
      ConfigError: it does not fit; the message names the cheapest change after which it does.
    """
    limit = capabilities.memory_bytes
    if limit is None or within(memory(config, mesh_of(config)).total, limit) is not False:
        return
    raise ConfigError(refusal(config, capabilities))


def refusal(config: Config, capabilities: Capabilities, need: int | None = None) -> str:
    """Return one line: what the step needs (a compiler's word, or the formulas'), what there is, the cheapest change."""
    need, limit = need or memory(config, mesh_of(config)).total, capabilities.memory_bytes
    says = f"config does not fit: {gib(need)} GiB per device, but {capabilities.device_kind} has {gib(limit)}."
    better = cheapest_change(config, capabilities)
    if better is None:
        return f"{says} No remat policy, ZeRO stage, mesh or number of micro-batches makes it fit; use more devices."
    now = memory(better, mesh_of(better)).total
    return f"{says} Cheapest change: {' '.join(overrides(better, config))} ({gib(now)} GiB)."


def gib(size: float) -> str:
    """Return bytes in GiB with one decimal."""
    return f"{size / 2**30:.1f}"


def cheapest_change(config: Config, capabilities: Capabilities) -> Config | None:
    """Return the first of ever dearer changes that fits, or None.

    In this order: a remat policy that keeps less (its FLOPs are computed again), more micro-batches (parameters are
    gathered more often), a higher ZeRO stage (more is sent), another mesh (what is sent goes elsewhere), and then two
    of them, three, all.
    """
    for one in _changes(config, capabilities):
        if is_possible(one) and within(memory(one, mesh_of(one)).total, capabilities.memory_bytes):
            return one
    return None


def _changes(config: Config, capabilities: Capabilities) -> Iterator[Config]:
    policies = [p for p in POLICIES if capabilities.can_offload or "offload" not in p]
    place = policies.index(config.model.remat) if config.model.remat in policies else -1
    leaner = policies[place + 1 :]
    more = [n for n in micro_batches(config) if n > config.optimizer.accumulation_steps]
    stages = range(config.parallel.zero + 1, 4) if getattr(config.parallel, SHARED) > 1 else ()
    yield from (change(config, remat=remat) for remat in leaner)
    yield from (change(config, micro=n) for n in more)
    yield from (change(config, zero=zero) for zero in stages)
    others = list(_other_meshes(config))
    yield from (change(config, zero=3, **sizes) for sizes in others)
    leanest = [p for p in leaner if "offload" not in p][-1:] or [config.model.remat]
    for remat in leanest:
        yield from (change(config, remat=remat, micro=n) for n in more)
        yield from (change(config, remat=remat, zero=3, micro=n) for n in (config.optimizer.accumulation_steps, *more))
        for sizes in others:
            on_mesh = change(config, remat=remat, zero=3, **sizes)
            yield from (change(on_mesh, micro=n) for n in micro_batches(on_mesh))


def _other_meshes(config: Config) -> list[dict[str, int]]:
    """Return meshes that share the state among more devices, those nearest to the config's first."""
    devices, now = 1, mesh_of(config)
    for axis in MESH_AXES:
        devices *= now[axis]
    sharing = lambda sizes: sizes[SHARED] * sizes[TENSOR] * sizes[STAGE]  # noqa: E731
    found = [sizes for sizes in meshes(config, devices) if sharing(sizes) > sharing(now)]
    return sorted(found, key=lambda s: (sum(s[a] != now[a] for a in s), s[TENSOR], s[STAGE], sharing(s)))
