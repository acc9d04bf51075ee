"""The collectives of a compiled program: what travels, along which mesh axes, how often.

The contract that tests hold a sharding to, and what the roofline compares its own volumes with.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lm.plan.hlo import Computation, Instruction, executions, parse

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
_BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same axes with the same payload."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which it runs
    group: int  # devices that take part in one
    instructions: int  # in the program
    executions: int  # in one run of it
    bytes: int  # payload of one: the whole array that is gathered, reduced, scattered, or sent

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends in one run of the program, by the ring algorithms."""
        return self.executions * sent_bytes(self.kind, self.bytes, self.group)


def sent_bytes(kind: str, size: float, group: int) -> float:
    """Return what each of `group` devices sends in a collective with a payload of `size` bytes.

    A ring gathers or scatters in group - 1 steps of size / group bytes; an all-reduce does both (Thakur et al. 2005).
    """
    share = (group - 1) / group
    return size * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def collectives(text: str, mesh: Mapping[str, int] | object) -> list[Collective]:
    """Return the collectives of a compiled program's text, those that send most first.

    Args:
      text: `compiled.as_text()`, of any backend.
      mesh: the mesh that it was compiled for (or its axes' sizes, in order).

    A collective that a TPU spreads over several fusions is one. Groups of one device are left out. One that runs on a part of an axis is reported on
    that axis with its own group.

    Raises:
      ValueError: a collective stands in a loop of unknown length, or its groups cannot be read.
    """
    sizes = dict(getattr(mesh, "shape", mesh))
    computations = parse(text)
    counts = executions(computations)
    rows: dict[tuple, list[float]] = defaultdict(lambda: [0, 0])
    for computation, instruction in _instructions(computations):
        times = counts[computation.name]
        if math.isnan(times):
            raise ValueError(f"{instruction.name} runs in a loop whose length the program does not say")
        kind, groups = _kind(computation, instruction), _groups(instruction)
        group = 2 if kind == "collective-permute" else len(groups[0])
        if times == 0 or group == 1:
            continue
        size = _payload(instruction, kind, group)
        row = rows[kind, _axes(groups, sizes), group, size]
        row[0] += 1
        row[1] += times
    found = [
        Collective(kind, axes, group, int(n), round(times), size)
        for (kind, axes, group, size), (n, times) in rows.items()
    ]
    return sorted(found, key=lambda c: -c.sent_bytes)


def summary(found: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...]], tuple[int, int, float]]:
    """Return (kind, axes) -> (instructions, executions, bytes sent per device)."""
    out: dict = {}
    for c in found:
        before = out.get((c.kind, c.axes), (0, 0, 0.0))
        out[c.kind, c.axes] = (before[0] + c.instructions, before[1] + c.executions, before[2] + c.sent_bytes)
    return out


def _instructions(computations: Mapping[str, Computation]) -> list[tuple[Computation, Instruction]]:
    """Return every collective once.

    A TPU's asynchronous collective fusion prints one collective in the fusion that starts it, in those beside which
    it runs and in the one that ends it, all of the same channel: the start stands for it.
    """
    found, started = [], set()
    for computation in computations.values():
        is_start = any("AsyncCollectiveStart" in i.attributes for i in computation.instructions.values())
        for instruction in computation.instructions.values():
            if instruction.opcode.removesuffix("-start") in KINDS:
                found.append((computation, instruction, is_start))
                if is_start:
                    started.add(_channel(instruction))
    fused = {
        called
        for computation in computations.values()
        for i in computation.instructions.values()
        if i.opcode == "fusion"
        for called in [i.attribute(r"calls=%([\w.\-]+)")]
    }
    return [
        (computation, instruction)
        for computation, instruction, is_start in found
        if is_start or computation.name not in fused or _channel(instruction) not in started
    ]


def _channel(instruction: Instruction) -> str | None:
    return instruction.attribute(r"channel_id=(\d+)")


def _kind(computation: Computation, instruction: Instruction) -> str:
    kind = instruction.opcode.removesuffix("-start")
    # A TPU writes a reduce-scatter as a fusion of an all-reduce and the slice that is kept.
    return "reduce-scatter" if kind == "all-reduce" and "all-reduce-scatter" in computation.name else kind


def _payload(instruction: Instruction, kind: str, group: int) -> int:
    """Return the bytes of the whole array, from the shape of the result."""
    arrays = [_bytes(*match.groups()) for match in _ARRAY.finditer(instruction.shape)]
    is_start = instruction.opcode.endswith("-start")
    if kind == "collective-permute":
        return arrays[1] if is_start else sum(arrays)
    if is_start and kind == "all-gather":  # operands, then results
        return sum(arrays[len(arrays) // 2 :])
    scattered = kind == "reduce-scatter" and instruction.opcode == "reduce-scatter"
    return sum(arrays) * (group if scattered else 1)


def _bytes(dtype: str, sizes: str) -> int:
    bits = _BITS.get(dtype) or (8 if dtype.startswith("f8") else None)
    if bits is None:
        raise ValueError(f"unknown type {dtype} in a collective")
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _groups(instruction: Instruction) -> np.ndarray | list[list[int]]:
    """Return the devices of each group; for a permutation, the pairs.

    Three ways of writing: `{{0,1},{2,3}}`, `[2,2]<=[4]` (maybe `<=[2,2]T(1,0)`), and `mesh['a'=2,'b'=2] {'a'}` (maybe
    with `, device_ids=([2,2]T(1,0))`, or a part of an axis, `{'a':(1)2}`).
    """
    attributes = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    explicit = pairs or re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", attributes)
    if explicit:
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_ints(iota[1]))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?(.*?)\)?)? \{([^}]*)\}", attributes)
    if named:
        return _named_groups(named[1], named[2], named[3])
    raise ValueError(f"cannot read the groups of {instruction.name}: {attributes[:120]}")


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _iota(shape: str, transpose: str | None) -> np.ndarray:
    sizes = _ints(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_ints(transpose)) if transpose else ids).reshape(-1)


def _named_groups(axes: str, order: str | None, over: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if order:
        iota = re.fullmatch(r"(?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
        if not iota:
            raise ValueError(f"cannot read the device order {order}")
        ids = _iota(iota[1], iota[2])
    shape, groups = [], []
    parts = dict(re.findall(r"'([^']+)'(?::\((\d+)\)\d+)?", over))
    whole = {name: int(size) for name, size in re.findall(r"'([^']+)':\(\d+\)(\d+)", over)}
    for name, size in sizes.items():
        if parts.get(name):  # a part of an axis: 'a':(2)4 is the middle factor of 2 x 4 x rest
            before, inside = int(parts[name]), whole[name]
            shape += [before, inside, size // (before * inside)]
            groups += [False, True, False]
        else:
            shape.append(size)
            groups.append(name in parts)
    places = [*(i for i, g in enumerate(groups) if not g), *(i for i, g in enumerate(groups) if g)]
    count = math.prod(size for size, g in zip(shape, groups, strict=True) if g)
    return ids.reshape(shape).transpose(places).reshape(-1, count)


def _axes(groups: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which the members of the groups differ."""
    coordinates = [np.unravel_index(np.asarray(group), tuple(sizes.values())) for group in groups]
    return tuple(
        axis
        for place, axis in enumerate(sizes)
        if any(len(set(np.asarray(place_of[place]).tolist())) > 1 for place_of in coordinates)
    )
