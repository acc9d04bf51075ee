"""The collectives of a compiled program, their axes, how often they run and what they carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lm.plan.collectives import Collective, collectives, sent_bytes, summary

MESH = {"data": 2, "fsdp": 4}
HEAD = "HloModule m\n\nENTRY %main (x: f32[8,16]) -> f32[8,16] {\n  %x = f32[8,16]{1,0} parameter(0)\n"


def one(instruction: str, mesh=MESH) -> Collective:
    """Parse a program of one collective."""
    (found,) = collectives(f"{HEAD}  ROOT %c = {instruction}\n}}\n", mesh)
    return found


@pytest.mark.parametrize(
    "groups, axes",
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{{0,1,2,3,4,5,6,7}}", ("data", "fsdp")),
        ("[2,4]<=[8]", ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[1,8]<=[8]", ("data", "fsdp")),
        ("mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
        ("mesh['a'=2,'b'=4] {'a'}", ("data",)),
        ("mesh['a'=8,'b'=1] {'a','b'}", ("data", "fsdp")),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp",)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("mesh['a'=8] {'a':(2)4}", ("fsdp",)),
        ("mesh['a'=8] {'a':(1)2}", ("data",)),
    ],
)
def test_groups_however_written_are_mesh_axes(groups, axes):
    found = one(f"f32[8,16]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add")
    assert found.axes == axes
    assert found.group == int(np.prod([MESH[axis] for axis in axes]))


def test_groups_of_one_device_send_nothing_and_are_left_out():
    assert collectives(f"{HEAD}  ROOT %c = f32[8] all-reduce(%x), replica_groups=[8,1]<=[8]\n}}\n", MESH) == []


def test_groups_that_cannot_be_read_are_an_error_not_a_guess():
    with pytest.raises(ValueError, match="cannot read the groups"):
        one("f32[8,16]{1,0} all-reduce(%x), replica_groups=everyone, to_apply=%add")


@pytest.mark.parametrize(
    "instruction, kind, size",
    [
        ("bf16[32,16]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}", "all-gather", 32 * 16 * 2),
        (
            "(f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8]",
            "all-gather",
            32 * 16 * 4,
        ),
        ("f32[2,16]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8]", "reduce-scatter", 8 * 16 * 4),
        ("(f32[8]{0}, f32[]) all-reduce(%x, %x), replica_groups=[1,8]<=[8]", "all-reduce", 36),
        ("f32[8,16]{1,0} all-reduce-start(%x), replica_groups=[1,8]<=[8]", "all-reduce", 512),
        (
            "(bf16[8]{0}, bf16[8]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            16,
        ),
        ("(f32[2,16]{1,0}, f32[2,16]{1,0}) all-to-all(%x, %x), replica_groups=[4,2]<=[8]", "all-to-all", 256),
        ("s4[8]{0} all-gather(%x), replica_groups=[4,2]<=[8]", "all-gather", 4),
        ("f8e4m3fn[8]{0} all-gather(%x), replica_groups=[4,2]<=[8]", "all-gather", 8),
    ],
)
def test_payloads_are_those_of_the_whole_array(instruction, kind, size):
    found = one(instruction)
    assert (found.kind, found.bytes, found.executions) == (kind, size, 1)


def test_a_permutations_axes_are_those_its_pairs_cross():
    along = one("f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}")
    across = one("f32[8]{0} collective-permute(%x), source_target_pairs={{0,4},{4,0}}")
    assert (along.axes, across.axes) == (("fsdp",), ("data",))


def test_a_ring_sends_its_share():
    assert sent_bytes("all-gather", 800, 8) == sent_bytes("reduce-scatter", 800, 8) == 700
    assert sent_bytes("all-reduce", 800, 8) == 1400
    assert sent_bytes("collective-permute", 800, 2) == 800
    assert sent_bytes("all-gather", 800, 1) == 0


FUSED = """HloModule m

%start (p: f32[1,4]) -> f32[1,16] {
  %p = f32[1,4]{1,0} parameter(0)
  %g.1 = f32[1,16]{1,0} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %s = (f32[1,4]{1,0}, f32[1,16]{1,0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p.1: f32[1,4]) -> f32[1,16] {
  %p.1 = f32[1,4]{1,0} parameter(0)
  ROOT %g.2 = f32[1,16]{1,0} all-gather(%p.1), channel_id=3, replica_groups=[2,4]<=[8], dimensions={1}
}

%done (p.2: f32[1,4]) -> f32[1,16] {
  %p.2 = f32[1,4]{1,0} parameter(0)
  %g.3 = f32[1,16]{1,0} all-gather(%p.2), channel_id=3, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %d = f32[1,16]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p.3: f32[8]) -> f32[2] {
  %p.3 = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%p.3), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (x: f32[1,4]) -> f32[1,16] {
  %x = f32[1,4]{1,0} parameter(0)
  %a = f32[1,16]{1,0} fusion(%x), kind=kCustom, calls=%start
  %b = f32[1,16]{1,0} fusion(%x), kind=kCustom, calls=%beside
  %e = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %c = f32[1,16]{1,0} fusion(%x), kind=kCustom, calls=%done
}
"""


def test_a_tpus_fused_collective_is_counted_once_and_its_reduce_scatter_is_one():
    assert summary(collectives(FUSED, MESH)) == {
        ("all-gather", ("fsdp",)): (1, 1, 48.0),
        ("reduce-scatter", ("fsdp",)): (1, 1, 24.0),
    }


def test_every_collective_of_a_real_program_is_found_with_its_loops_trip_count():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def local(x, weights):
        def layer(x, weight):
            weight = jax.lax.all_gather(weight, "fsdp", axis=0, tiled=True)
            return jax.lax.ppermute(jnp.tanh(x @ weight), "data", [(0, 1), (1, 0)]), None

        x, _ = jax.lax.scan(layer, x, weights)
        x = jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.psum(x, "data") * 0.5, x)
        scattered = jax.lax.psum_scatter(x, ("data", "fsdp"), scatter_dimension=0, tiled=True)
        swapped = jax.lax.all_to_all(x, "fsdp", split_axis=0, concat_axis=1, tiled=True)
        return jax.lax.psum(jnp.sum(scattered) + jnp.sum(swapped), ("data", "fsdp"))

    specs = (PartitionSpec(("data", "fsdp")), PartitionSpec(None, "fsdp"))
    step = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False))
    text = step.lower(jnp.ones((64, 16)), jnp.ones((5, 16, 16))).compile().as_text()
    both = ("data", "fsdp")
    assert summary(collectives(text, mesh)) == {
        ("all-gather", ("fsdp",)): (1, 5, 5 * 1024 * 3 / 4),
        ("collective-permute", ("data",)): (1, 5, 5 * 512),
        ("all-reduce", ("data",)): (1, 3, 3 * 512),
        ("reduce-scatter", both): (1, 1, 512 * 7 / 8),
        ("all-to-all", ("fsdp",)): (1, 1, 512 * 3 / 4),
        ("all-reduce", both): (1, 1, 7.0),
    }


def test_a_collective_in_a_loop_of_unknown_length_is_an_error():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def local(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: jax.lax.psum(x, "data"), x)

    spec = PartitionSpec("data")
    step = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    text = step.lower(jnp.ones(8)).compile().as_text()
    with pytest.raises(ValueError, match="in a loop whose length"):
        collectives(text, mesh)
