"""How often an instruction of a compiled program runs: loops in loops, counters of any start and step."""

import math

import jax
import jax.numpy as jnp
import pytest

from lm.plan.hlo import executions, parse, trip_count

LOOP = """HloModule m

%add (a: s32[], b: s32[]) -> s32[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}}

%body (p: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {{
  %p = (s32[], f32[8]{{0}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %limit = s32[] get-tuple-element(%p), index=2
  %step = s32[] constant({step})
  %next = s32[] {add}
  ROOT %out = (s32[], f32[8]{{0}}, s32[]) tuple(%next, %x, %limit)
}}

%condition (p.1: (s32[], f32[8], s32[])) -> pred[] {{
  %p.1 = (s32[], f32[8]{{0}}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] {end}
  ROOT %less = pred[] compare({compare})
}}

ENTRY %main (x.1: f32[8]) -> f32[8] {{
  %x.1 = f32[8]{{0}} parameter(0)
  %start = s32[] constant({start})
  %copied = s32[] copy(%start)
  %most = s32[] constant(10)
  %state = (s32[], f32[8]{{0}}, s32[]) tuple(%copied, %x.1, %most)
  %loop = (s32[], f32[8]{{0}}, s32[]) while(%state), condition=%condition, body=%body{known}
  ROOT %y = f32[8]{{0}} get-tuple-element(%loop), index=1
}}
"""
CONSTANT, CARRIED = "constant(10)", "get-tuple-element(%p.1), index=2"
DIRECT, FUSED = "add(%i, %step)", "fusion(%i, %step), kind=kLoop, calls=%add"
LESS, GREATER, AT_MOST = (
    "%i.1, %end), direction=LT",
    "%end, %i.1), direction=GT",
    "%i.1, %end), direction=LE",
)


def parsed_trips(**options):
    compare = options.pop("compare", LESS)
    left, direction = compare.split("), ")
    text = LOOP.format(
        **{"start": 0, "step": 1, "end": CONSTANT, "add": DIRECT, "known": ""} | options, compare=left
    ).replace(f"compare({left})", f"compare({left}), {direction}")
    computations = parse(text)
    main = computations["main"]
    return trip_count(computations, main, main.instructions["loop"]), executions(computations)


@pytest.mark.parametrize(
    "options, trips",
    [
        ({}, 10),
        ({"start": 4}, 6),
        ({"step": 2}, 5),
        ({"step": 3}, 4),
        ({"end": CARRIED}, 10),
        ({"add": FUSED, "step": 2}, 5),
        ({"compare": GREATER}, 10),
        ({"compare": AT_MOST}, 11),
        ({"start": 12}, 0),
        ({"known": ', backend_config={"known_trip_count":{"n":"7"}}'}, 7),
    ],
)
def test_the_trip_count_is_the_compilers_or_follows_from_the_counter(options, trips):
    found, counts = parsed_trips(**options)
    assert found == trips
    assert (counts["body"], counts["condition"], counts["main"]) == (trips, trips + 1, 1)


@pytest.mark.parametrize("options", [{"add": "multiply(%i, %step)"}, {"end": "get-tuple-element(%p.1), index=0"}])
def test_a_loop_of_unknown_length_is_not_counted_as_one_turn(options):
    found, counts = parsed_trips(**options)
    assert found is None and math.isnan(counts["body"])


def test_loops_in_loops_multiply_in_a_real_program():
    def inner(i, x):
        return jnp.sin(x) * 0.5

    def outer(x, _):
        return jax.lax.fori_loop(0, 3, inner, x), None

    text = jax.jit(lambda x: jax.lax.scan(outer, x, None, length=5)[0]).lower(jnp.ones(8)).compile().as_text()
    computations = parse(text)
    counts = executions(computations)
    sines = [counts[c.name] * sum(i.opcode == "sine" for i in c.instructions.values()) for c in computations.values()]
    assert sum(sines) == 15
