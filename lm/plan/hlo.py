"""Compiled HLO text: its computations, and how often each of them runs.

A compiler's own counts take the body of a loop once. Here the trip count of a loop is the compiler's
(`known_trip_count`) where it says so, and otherwise derived from the constants of the counter: where it starts, what
the body adds to it and what the condition compares it with.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str  # as printed: f32[8,16]{1,0}, or a tuple of such
    opcode: str
    operands: tuple[str, ...]  # names
    attributes: str  # what stands after the operands
    is_root: bool
    text: str  # between the parentheses: a constant's value, a parameter's number

    def attribute(self, pattern: str) -> str | None:
        """Return the first group of a pattern in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation's instructions by name."""

    name: str
    is_entry: bool
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)


def parse(text: str) -> dict[str, Computation]:
    """Return name -> computation of a compiled module's text (`compiled.as_text()`)."""
    computations: dict[str, Computation] = {}
    name, is_entry, instructions = None, False, {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, is_entry, instructions = header[2], bool(header[1]), {}
        elif line == "}" and name is not None:
            computations[name] = Computation(name, is_entry, instructions)
            name = None
        elif name is not None:
            instruction = _instruction(line)
            if instruction:
                instructions[instruction.name] = instruction
    return computations


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if not named:
        return None
    rest = line[named.end() - 1 :]
    opcode = _OPCODE.search(rest)
    if not opcode:
        return None
    end = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : end]
    return Instruction(
        name=named[2],
        shape=rest[: opcode.start()].strip(),
        opcode=opcode[1],
        operands=tuple(_OPERAND.findall(inside)),
        attributes=rest[end + 1 :],
        is_root=bool(named[1]),
        text=inside,
    )


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def executions(computations: Mapping[str, Computation]) -> dict[str, float]:
    """Return how often each computation runs in one run of the program; NaN inside a loop of unknown length.

    Every branch of a conditional is counted as if it were always taken.
    """
    callers: dict[str, list[tuple[str, float]]] = {name: [] for name in computations}
    for computation in computations.values():
        for instruction in computation.instructions.values():
            for callee, times in _calls(computations, computation, instruction):
                if callee in callers:
                    callers[callee].append((computation.name, times))

    @functools.cache
    def count(name: str) -> float:
        if computations[name].is_entry:
            return 1
        return sum(count(caller) * times for caller, times in callers[name])

    return {name: count(name) for name in computations}


def _calls(computations, computation: Computation, instruction: Instruction) -> list[tuple[str, float]]:
    if instruction.opcode == "while":
        body, condition = (instruction.attribute(rf"{part}=%([\w.\-]+)") for part in ("body", "condition"))
        trips = trip_count(computations, computation, instruction)
        return [(body, math.nan if trips is None else trips), (condition, math.nan if trips is None else trips + 1)]
    if instruction.opcode in ("fusion", "async-start"):
        return [(instruction.attribute(r"calls=%([\w.\-]+)"), 1)]
    if instruction.opcode == "call":
        return [(instruction.attribute(r"to_apply=%([\w.\-]+)"), 1)]
    if instruction.opcode == "conditional":
        branches = instruction.attribute(r"branch_computations=\{([^}]*)\}")
        named = branches or "".join(re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", instruction.attributes))
        return [(name, 1) for name in _OPERAND.findall(named)]
    return []


def trip_count(computations: Mapping[str, Computation], caller: Computation, loop: Instruction) -> int | None:
    """Return how often a `while` instruction's body runs, or None where the text does not say."""
    known = _TRIP_COUNT.search(loop.attributes)
    if known:
        return int(known[1])
    condition, body = (computations.get(loop.attribute(rf"{part}=%([\w.\-]+)") or "") for part in ("condition", "body"))
    if condition is None or body is None:
        return None
    compare = _through_fusion(computations, condition)
    if compare is None:
        return None
    direction, left, right = compare
    if direction in ("GT", "GE"):  # limit > counter
        direction, left, right = {"GT": "LT", "GE": "LE"}[direction], right, left
    index = _element(condition, left)
    if index is None or direction not in ("LT", "LE"):
        return None
    limit = _constant(condition, right)
    if limit is None:  # an invariant that was moved out of the loop: what the loop starts with
        carried = _element(condition, right)
        limit = _initial(caller, loop, carried) if carried is not None and _is_unchanged(body, carried) else None
    start, step = _initial(caller, loop, index), _step(computations, body, index)
    if limit is None or start is None or not step or step < 0:
        return None
    return max(0, -(-(limit + (direction == "LE") - start) // step))


def _through_fusion(computations, condition: Computation) -> tuple[str, str, str] | None:
    """Return (direction, left, right) of the condition's comparison, operands named in the condition itself."""
    root = _source(condition, condition.root.name)
    if root is None:
        return None
    if root.opcode == "compare":
        return root.attribute(r"direction=(\w+)"), *root.operands
    inner = computations.get(root.attribute(r"calls=%([\w.\-]+)") or "")
    if root.opcode != "fusion" or inner is None or inner.root.opcode != "compare":
        return None
    outer = []
    for operand in inner.root.operands:
        found = _source(inner, operand)
        if found is None or found.opcode != "parameter":
            return None
        outer.append(root.operands[int(found.text)])
    return inner.root.attribute(r"direction=(\w+)"), *outer


def _source(computation: Computation, name: str) -> Instruction | None:
    """Return the instruction that a value comes from, through copies."""
    found = computation.instructions.get(name)
    while found is not None and found.opcode in _SAME and found.operands:
        found = computation.instructions.get(found.operands[0])
    return found


def _constant(computation: Computation, name: str) -> int | None:
    found = _source(computation, name)
    is_integer = found is not None and found.opcode == "constant" and re.fullmatch(r"-?\d+", found.text)
    return int(found.text) if is_integer else None


def _element(computation: Computation, name: str) -> int | None:
    """Return which element of the loop's tuple a value is."""
    found = _source(computation, name)
    if found is None or found.opcode != "get-tuple-element":
        return None
    whole = _source(computation, found.operands[0])
    is_state = whole is not None and whole.opcode == "parameter"
    return int(found.attribute(r"index=(\d+)")) if is_state else None


def _initial(caller: Computation, loop: Instruction, index: int) -> int | None:
    whole = _source(caller, loop.operands[0])
    if whole is None or whole.opcode != "tuple":
        return None
    return _constant(caller, whole.operands[index])


def _is_unchanged(body: Computation, index: int) -> bool:
    root = _source(body, body.root.name)
    return root is not None and root.opcode == "tuple" and _element(body, root.operands[index]) == index


def _step(computations, body: Computation, index: int) -> int | None:
    """Return what the body adds to an element of its tuple."""
    root = _source(body, body.root.name)
    if root is None or root.opcode != "tuple":
        return None
    found = _source(body, root.operands[index])
    if found is None or found.opcode not in ("add", "fusion"):
        return None
    constants = [_constant(body, operand) for operand in found.operands]
    known = [value for value in constants if value is not None]
    if found.opcode == "fusion" and not known:  # the constant may be inside
        inner = computations.get(found.attribute(r"calls=%([\w.\-]+)") or "")
        if inner is None or inner.root.opcode != "add":
            return None
        known = [v for v in (_constant(inner, operand) for operand in inner.root.operands) if v is not None]
    return known[0] if len(known) == 1 else None
