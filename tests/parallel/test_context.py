"""Sequences divided over devices: the same attention, equal work, no device with all of the keys."""

import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.evaluate.loss import LossEvaluator
from lm.kernels.flash_attention import flash_attention
from lm.kernels.flash_attention.options import Options, visible
from lm.kernels.flash_attention.plan import make_plan
from lm.parallel.auto import auto_layout
from lm.parallel.columns import from_zigzag, is_split, to_zigzag, zigzag
from lm.parallel.local import local_model
from lm.parallel.mesh import make_mesh, place_batch
from lm.parallel.region import region
from lm.parallel.ring import pairs, steps
from lm.train.step import build_step
from tests.kernels.attention_cases import Case
from tests.parallel.common import HEADS, TOKENS, attention_over, device_attention, mesh_with
from tests.train.common import fake_batch, numpy_batch, run_steps, scalars, small_config

METHODS = ("ring", "ulysses")


# The layout.


def test_each_device_holds_a_chunk_from_the_front_and_its_mirror_image_from_the_back():
    parts = zigzag(24, 3).reshape(3, 8)
    np.testing.assert_array_equal(parts[0], [0, 1, 2, 3, 20, 21, 22, 23])
    np.testing.assert_array_equal(parts[1], [4, 5, 6, 7, 16, 17, 18, 19])
    np.testing.assert_array_equal(parts[2], [8, 9, 10, 11, 12, 13, 14, 15])
    np.testing.assert_array_equal(zigzag(10, 1), np.arange(10))


@pytest.mark.parametrize("context", [1, 2, 3, 4])
def test_arrays_go_into_zigzag_order_and_back(context):
    x_BTH = jnp.arange(2 * 24 * 3).reshape(2, 24, 3)
    np.testing.assert_array_equal(to_zigzag(x_BTH, context), x_BTH[:, zigzag(24, context)])
    np.testing.assert_array_equal(from_zigzag(to_zigzag(x_BTH, context), context), x_BTH)


def test_batches_are_laid_out_in_zigzag_order_and_hosts_build_only_what_their_devices_hold():
    mesh, asked = mesh_with(data=2, context=4), []
    whole = np.arange(8 * 16).reshape(8, 16)

    def build(rows, columns):
        asked.append(whole[rows][:, columns])
        return {"x": asked[-1]}

    placed = place_batch(mesh, (2, 4, 16), build)["x"]
    np.testing.assert_array_equal(np.asarray(placed).reshape(8, 16), whole[:, zigzag(16, 4)])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2, 4)}
    assert sorted(np.concatenate([part.reshape(-1) for part in asked])) == list(range(8 * 16)), "each token once"


def test_lengths_that_are_not_two_chunks_a_device_keep_their_order():
    placed = place_batch(
        mesh_with(context=4), (1, 2, 12), lambda rows, columns: {"x": np.arange(24).reshape(2, 12)[rows][:, columns]}
    )
    np.testing.assert_array_equal(np.asarray(placed["x"]).reshape(-1), np.arange(24))
    assert not is_split(12, 4) and is_split(16, 4) and not is_split(16, 1)


# The order of work.


def block_counts(step, device, context, chunk, options, block):
    """Return how many blocks of logits a device computes in a step."""
    total = 0
    for pair in pairs(step, device, context, chunk, options):
        masks = {"causal": pair.options.causal, "window": pair.options.window, "q_offset": int(pair.offset)}
        ranges = make_plan(pair.length, pair.length, block, block, **masks).of_queries
        total += int(np.sum(ranges.hi - ranges.lo))
    return total


@pytest.mark.parametrize("context", [2, 4, 8])
def test_every_device_does_the_same_work_in_every_step_but_the_first(context):
    blocks = 4  # per chunk
    causal = Options(causal=True, window=None, softcap=None, scale=1.0)
    counts = [[block_counts(s, i, context, 32, causal, 32 // blocks) for i in range(context)] for s in range(context)]
    assert {count for step in counts[1:] for count in step} == {2 * blocks**2}, "two of four pairs of chunks"
    assert set(counts[0]) == {2 * blocks * (2 * blocks + 1) // 2}
    whole = 2 * context * blocks
    assert np.sum(counts) == whole * (whole + 1) // 2, "as many as on one device"


@pytest.mark.parametrize("window", [None, 1, 2, 4, 5, 6, 11, 33])
@pytest.mark.parametrize("context", [2, 3, 5])
def test_every_visible_pair_of_tokens_is_met_once_and_no_other(context, window):
    chunk = 4
    options = Options(causal=True, window=window, softcap=None, scale=1.0)
    order, met = (
        zigzag(2 * context * chunk, context).reshape(context, 2 * chunk),
        np.zeros((2 * context * chunk,) * 2, int),
    )
    for step in steps(context, chunk, options):
        for device in range(context):
            for pair in pairs(step, device, context, chunk, options):
                own = order[device][int(pair.q_start) :][: pair.length]
                others = order[(device - step) % context][int(pair.k_start) :][: pair.length]
                at_q, at_k = np.arange(pair.length) + int(pair.offset), np.arange(pair.length)
                met[np.ix_(own, others)] += np.asarray(visible(pair.options, at_q[:, None], at_k[None]))
    at = np.arange(len(met))
    np.testing.assert_array_equal(met, visible(options, at[:, None], at[None]))


def test_a_window_leaves_out_the_steps_that_it_does_not_reach():
    options = Options(causal=True, window=None, softcap=None, scale=1.0)
    reached = {w: steps(8, 64, dataclasses.replace(options, window=w)) for w in (None, 1, 2, 65, 66, 130)}
    assert reached == {
        None: list(range(8)),
        1: [0],
        2: [0, 1, 7],
        65: [0, 1, 7],
        66: [0, 1, 2, 6, 7],
        130: [0, 1, 2, 3, 5, 6, 7],
    }


# The same results as on one device.


def results(attend, arrays, ids):
    """Return out and the gradients of q, k and v."""
    q, k, v, dout = arrays

    def loss(q, k, v):
        out = attend(q, k, v, ids)
        return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32)), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert [x.dtype for x in (out, *grads)] == [q.dtype] * 4
    return [np.asarray(x.astype(jnp.float32)) for x in (out, *grads)]


def assert_same(case, mesh, method, tolerance=1e-5, **around):
    (q, k, v, dout, _), ids = case.arrays()
    ids = jnp.asarray(ids["q_segment_ids"]) if ids else None
    arrays = [jnp.asarray(x) for x in (q, k, v, dout)]

    def definition(q, k, v, ids):
        options = {"q_segment_ids": ids, "kv_segment_ids": ids, "implementation": "reference"}
        return flash_attention(q, k, v, **options, **case.options)

    wanted = results(definition, arrays, ids)
    order = zigzag(case.T, mesh.shape["context"])
    attend = attention_over(mesh, method, implementation="blockwise", **around, **case.options)
    got = results(attend, [x[:, order] for x in arrays], None if ids is None else ids[:, order])
    for a, b, name in zip(got, wanted, ("out", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(a, b[:, order], atol=tolerance, rtol=tolerance, err_msg=name)


EVERYTHING = Case(T=32, S=32, window=11, documents=3, softcap=3.0)
CASES = {
    "causal": Case(T=32, S=32),
    "all see all": Case(T=32, S=32, causal=False),
    "all see all, packed": Case(T=32, S=32, causal=False, documents=3),
    "short window": Case(T=32, S=32, window=3),
    "window": Case(T=32, S=32, window=13),
    "packed": Case(T=32, S=32, documents=4),
    "softcap": Case(T=32, S=32, softcap=2.0, scale=0.5),
    "heads of their own": Case(T=32, S=32, K=4),
    "multi-query": Case(T=32, S=32, K=1),
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("method", METHODS)
def test_divided_over_two_devices_attention_and_its_gradients_are_the_same(method):
    assert_same(CASES["packed"], mesh_with(context=2), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name, context", [*((name, 4) for name in CASES), ("everything", 2)], ids=lambda x: str(x).replace(" ", "_")
)
def test_attention_and_its_gradients_are_the_same(name, context, method):
    assert_same(CASES[name], mesh_with(context=context), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("documents", [0, 3])
def test_in_bfloat16_too(method, documents):
    assert_same(Case(T=32, S=32, documents=documents, dtype="bfloat16"), mesh_with(context=4), method, tolerance=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [{"data": 2, "context": 2, "tensor": 2}, {"fsdp": 2, "context": 4}], ids=str)
def test_rows_and_heads_are_divided_beside_it(sizes, method):
    assert_same(EVERYTHING, mesh_with(**sizes), method)


@pytest.mark.parametrize("method", METHODS)
def test_it_works_in_a_scan_and_rematerialized(method):
    def around(attend):
        def layers(*qkv, **ids):
            @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("attention_out"))
            def layer(carry, _):
                return carry, attend(*qkv, **ids)

            return jnp.sum(jax.lax.scan(layer, None, length=2)[1], 0) / 2

        return layers

    assert_same(CASES["causal"], mesh_with(fsdp=2, context=2), method, around=around)


def test_for_generation_a_cache_and_lengths_that_do_not_divide_are_computed_whole_and_in_order():
    options = {"q_segment_ids": None, "kv_segment_ids": None, "implementation": "reference"}
    sharded = partial(auto_layout(mesh_with(context=4)).attention, **options)
    attend, at_start = jax.jit(sharded), jax.jit(partial(sharded, q_offset=0))
    (q, k, v, *_), _ = Case(T=12, S=12).arrays()
    np.testing.assert_allclose(at_start(q, k, v), flash_attention(q, k, v, implementation="reference"), atol=1e-5)
    (q, k, v, *_), _ = Case(T=32, S=32).arrays()
    whole = flash_attention(q, k, v, implementation="reference")
    np.testing.assert_allclose(attend(q, k, v, q_offset=jnp.int32(0)), whole, atol=1e-5)
    last = attend(q[:, -1:], k, v, q_offset=jnp.int32(31))
    np.testing.assert_allclose(last, whole[:, -1:], atol=1e-5)


def test_ulysses_refuses_heads_that_do_not_divide():
    (q, k, v, *_), _ = Case(T=32, S=32, N=6, K=2).arrays()
    with pytest.raises(ValueError, match="6 query heads are not a multiple of the 4 devices"):
        attention_over(mesh_with(context=4), "ulysses")(q, k, v)


def test_a_ring_refuses_lengths_that_are_not_two_chunks_a_device():
    (q, k, v, *_), _ = Case(T=12, S=12).arrays()
    with pytest.raises(ValueError, match="3 tokens per device are not two chunks"):
        attention_over(mesh_with(context=4), "ring")(q, k, v)


# What is sent, and what is held.


LONG = Case(B=1, T=4 * 26, S=4 * 26)  # no other size in the program is as large


@functools.cache
def compiled(case, mesh, method, gradients, policy=None):
    """Compile two layers of self-attention in the region."""
    attend = partial(device_attention(mesh, method), implementation="blockwise", **case.options)
    x = jax.ShapeDtypeStruct((case.B, case.T, case.N, case.H), jnp.float32, sharding=NamedSharding(mesh, HEADS))
    ids_sharding = NamedSharding(mesh, TOKENS)
    ids = jax.ShapeDtypeStruct((case.B, case.T), jnp.int32, sharding=ids_sharding) if case.documents else None

    def layers(x, ids):
        def layer(x, _):
            return attend(x, jnp.sin(x), jnp.cos(x), q_segment_ids=ids, kv_segment_ids=ids), None

        if policy:
            layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(policy))
        return jax.lax.scan(layer, x, length=2)[0]

    def backward(x, ids, dout):
        return jax.vjp(lambda x: layers(x, ids), x)[1](dout)[0]

    if gradients:
        return jax.jit(region(mesh, backward, (HEADS, TOKENS, HEADS), HEADS)).lower(x, ids, x).compile()
    return jax.jit(region(mesh, layers, (HEADS, TOKENS), HEADS)).lower(x, ids).compile()


def sent(*arguments) -> dict[str, int]:
    """Return how many collectives of each kind the compiled layer has, forward and, with gradients, backward."""
    kinds = ("collective-permute", "all-to-all", "all-gather", "all-reduce", "reduce-scatter")
    text = compiled(*arguments).as_text()
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


def test_a_ring_sends_keys_and_values_once_around_and_their_gradients_home():
    assert sent(LONG, mesh_with(context=4), "ring", False) == {"collective-permute": 3 * 2}
    # Backward: keys and values again, and their gradients, which come home too.
    assert sent(LONG, mesh_with(context=4), "ring", True) == {"collective-permute": 3 * 2 + 3 * 2 + 4 * 2}


@pytest.mark.slow
def test_a_ring_sends_segment_ids_too_and_nothing_that_no_window_reaches():
    case, mesh = Case(T=32, S=32, causal=False, documents=2), mesh_with(context=4)
    assert sent(case, mesh, "ring", False) == {"collective-permute": 3 * 3}
    assert sent(Case(T=32, S=32, window=5), mesh, "ring", False) == {"collective-permute": 2 * 2}


def test_ulysses_exchanges_each_array_once():
    case, mesh = Case(T=32, S=32), mesh_with(context=4)
    assert sent(case, mesh, "ulysses", False) == {"all-to-all": 4}
    assert sent(case, mesh, "ulysses", True) == {"all-to-all": 4 + 4}


def test_a_policy_that_keeps_attention_out_does_not_go_round_again():
    case, mesh = Case(T=32, S=32, causal=False), mesh_with(context=2)
    exponentials = {
        policy: compiled(case, mesh, "ring", True, policy).cost_analysis()["transcendentals"]
        for policy in ("attention_out", "nothing")
    }
    assert exponentials["attention_out"] < exponentials["nothing"]


def test_no_device_of_a_ring_holds_a_whole_sequence():
    text = compiled(LONG, mesh_with(context=4), "ring", True).as_text()
    sizes = {int(size) for shape in re.findall(r"\w\[([\d,]+)\]", text) for size in shape.split(",")}
    assert 26 in sizes
    assert max(sizes) < LONG.T


# The model.


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("document_mask", ["True", "False"])
def test_losses_agree_with_one_device(method, document_mask):
    overrides = {"parallel.context": "2", "parallel.context_method": method, "data.document_mask": document_mask}
    config = small_config(devices=4, **overrides)
    built = build_step(config, make_mesh(config.parallel, jax.devices()[:4]))
    single = small_config(**{"data.document_mask": document_mask})
    one = build_step(single, make_mesh(single.parallel, jax.devices()[:1]))
    np.testing.assert_allclose(run_steps(built, 4), run_steps(one, 4), atol=1e-5)
    evaluated = [
        LossEvaluator(local_model(c, b.mesh))(b.init().params, [numpy_batch(0)])["loss"]
        for c, b in ((config, built), (single, one))
    ]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)
    text = built.step.lower(built.state, fake_batch(built.mesh, 0), scalars(built, 0)).compile().as_text()
    assert ("collective-permute" if method == "ring" else "all-to-all") in text
