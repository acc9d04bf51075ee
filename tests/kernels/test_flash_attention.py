"""Attention on this machine's backends: the definition in float64, leaks, skipping, and what it composes with."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from lm.kernels.flash_attention import blockwise, flash_attention
from lm.parallel.auto import auto_layout
from tests.kernels.attention_cases import Case, assert_matches, computed, pairwise
from tests.train.common import mesh_of

# The blockwise backend in each of its ways, in blocks small enough for small problems.
ALWAYS = ((math.inf, 16),)
WAYS = {
    "unrolled": blockwise._Way(unrolled=ALWAYS, windowed=(), looped=ALWAYS, at_once=False, chunk=32, widen=True),
    "loops": blockwise._Way(unrolled=(), windowed=(), looped=ALWAYS, at_once=False, chunk=16, widen=True),
    "runs": blockwise._Way(unrolled=(), windowed=ALWAYS, looped=ALWAYS, at_once=False, chunk=16, widen=True),
    "accelerator": blockwise._Way(unrolled=(), windowed=(), looped=ALWAYS, at_once=True, chunk=16, widen=True),
}
IMPLEMENTATIONS = [
    *(pytest.param(name, marks=pytest.mark.slow) if name == "loops" else name for name in WAYS),  # "runs" has its loops
    "reference",
]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    return use(request.param, monkeypatch)


def use(name: str, monkeypatch) -> str:
    if name == "reference":
        return name
    monkeypatch.setattr(blockwise, "_CPU", WAYS[name])
    return "blockwise"


OPTIONS = {
    "T": (1, 16, 33, 40), "more": (0, 16, 21), "K": (1, 2), "G": (1, 3), "H": (8, 12), "causal": (False, True),
    "window": (None, 1, 9, 25), "documents": (0, 2, 5), "traced": (False, True), "softcap": (None, 3.0),
    "scale": (None, 0.3),
}  # fmt: skip


def case_of(T, more, K, G, traced, **rest) -> Case:
    return Case(T=T, S=T + more, K=K, N=K * G, offset=more if traced else None, **rest)


CASES = st.builds(
    case_of, **{name: st.sampled_from(values) for name, values in OPTIONS.items()}, seed=st.integers(0, 9)
)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=4, deadline=None, derandomize=True)
@example(Case(documents=3, window=9, softcap=3.0))
@example(Case(T=33, S=54, K=1, documents=2, causal=False))
@given(CASES)
def test_matches_the_definition(name, case):
    with pytest.MonkeyPatch.context() as patch:
        assert_matches(case, use(name, patch), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WAYS, "reference"])
def test_matches_the_definition_with_any_two_options(name, monkeypatch):
    """Every value with every other option's; the ways combine them differently, and have 98 % of all triples together."""
    for seed, options in enumerate(pairwise(OPTIONS, seed=[*WAYS, "reference"].index(name))):
        assert_matches(case_of(**options, seed=seed), use(name, monkeypatch), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("H, T", [(64, 300), (80, 300), (96, 300), (128, 300), (256, 300), (128, 256)])  # 256: no rest
def test_matches_the_definition_at_real_widths_and_blocks(H, T):
    case = Case(T=T, S=T, H=H, documents=2, window=200)
    assert_matches(case, "blockwise", 2e-6)
    assert_matches(dataclasses.replace(case, documents=0, window=None), "blockwise", 2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_is_within_its_rounding(implementation, dtype):
    assert_matches(Case(documents=3, softcap=3.0, dtype=dtype), implementation, 1e-2)


def test_no_value_and_no_gradient_leaks_between_documents_or_out_of_the_window(implementation):
    """Random values of 1e4 where a query must not look change neither its output nor its document's gradients."""
    case = Case(T=48, S=48, documents=0)
    ids_BT = np.repeat([[1, 2, 3]], [20, 13, 15], axis=1).repeat(2, axis=0).astype(np.int32)
    ids = {"q_segment_ids": ids_BT, "kv_segment_ids": ids_BT}
    for causal, window, own, poisoned in [
        (False, None, ids_BT == 2, ids_BT != 2),  # without causality the ids alone keep them apart
        (True, None, ids_BT == 2, ids_BT != 2),
        (True, 5, np.arange(48)[None] >= np.full((2, 1), 30), np.arange(48)[None] < np.full((2, 1), 26)),
    ]:
        problem = dataclasses.replace(case, causal=causal, window=window)
        arrays, _ = problem.arrays()
        arrays[3], arrays[4] = arrays[3] * own[:, :, None, None], arrays[4] * own[:, None]
        masks = ids if window is None else {}
        clean = computed(problem, implementation, arrays=arrays, ids=masks)
        noise = np.random.default_rng(1).normal(size=arrays[1].shape).astype(np.float32) * 1e4
        dirty = [arrays[0], *(x + noise * poisoned[:, :, None, None] for x in arrays[1:3]), *arrays[3:]]
        if window is None:  # other documents' queries too
            dirty[0] = arrays[0] + 1e4 * poisoned[:, :, None, None].astype(np.float32)
        dirty = computed(problem, implementation, arrays=dirty, ids=masks)
        lse = (clean[1].swapaxes(1, 2), dirty[1].swapaxes(1, 2))
        for a, b in ((clean[0], dirty[0]), lse, *zip(clean[2:], dirty[2:], strict=True)):
            np.testing.assert_array_equal(a[own], b[own])
        for gradient in dirty[3:]:
            np.testing.assert_array_equal(gradient[poisoned], 0)


# All heads at once, rows share a plan that knows causality and windows only.
SKIPPING = [(name, masks) for name in WAYS for masks in ("window", "causal", "documents")]
SKIPPING.remove(("accelerator", "documents"))


@pytest.mark.parametrize("name, masks", SKIPPING)
def test_blocks_that_are_skipped_whole_are_not_even_read(name, masks, monkeypatch):
    """NaN there would spread: a masked logit of NaN times 0 is NaN."""
    implementation = use(name, monkeypatch)
    case = Case(B=1, T=64, S=64, window=10 if masks == "window" else None)
    arrays, _ = case.arrays()
    number = np.arange(64)
    ids_BT = (1 + number // 32)[None].astype(np.int32)
    own, bad = {
        "window": (number >= 48, number < 32),
        "causal": (number < 32, number >= 32),
        "documents": (number >= 32, number < 32),
    }[masks]
    ids = {"q_segment_ids": ids_BT, "kv_segment_ids": ids_BT} if masks == "documents" else {}
    for x in arrays[1:3]:
        x[:, bad] = np.nan
    out, _, dq, dk, dv = computed(case, implementation, arrays=arrays, ids=ids)
    assert np.isfinite(out[:, own]).all() and np.isfinite(dq[:, own]).all()
    if masks == "documents":
        assert np.isfinite(dk[:, own]).all() and np.isfinite(dv[:, own]).all()


def test_a_query_that_sees_no_key_gives_zero_and_no_gradient(implementation):
    case = Case()
    ids = {"q_segment_ids": np.ones((2, 40), np.int32), "kv_segment_ids": np.full((2, 40), 2, np.int32)}
    for x in computed(case, implementation, ids=ids):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WAYS if name != "unrolled"])  # that needs to know the offset
@pytest.mark.parametrize("offset, window", [(-40, None), (400, 20)], ids=["later", "out of the window"])
def test_keys_that_no_query_reaches_are_not_even_read(name, offset, window, monkeypatch):
    """In a ring some chunks of keys are such; where they are is known on the device only."""
    case = Case(offset=offset, window=window)
    arrays, _ = case.arrays()
    for x in arrays[1:3]:
        x[:] = np.nan
    for x in computed(case, use(name, monkeypatch), arrays=arrays):
        np.testing.assert_array_equal(x, 0)


def test_offsets_may_differ_by_row(implementation):
    """The decoding form: one query of each row against a cache filled to a length of its own."""
    arrays, _ = Case(T=40, S=40).arrays()
    q, k, v = map(jnp.asarray, arrays[:3])
    whole = flash_attention(q, k, v, window=20, implementation="reference")
    lengths = jnp.array([7, 33])
    rows = q[jnp.arange(2), lengths][:, None]
    got = flash_attention(rows, k, v, window=20, q_offset=lengths, implementation=implementation)
    np.testing.assert_allclose(got[:, 0], whole[jnp.arange(2), lengths], atol=2e-6)


def test_partial_results_merge_by_their_lse(implementation):
    """What ring attention does: the keys in two parts, each result weighted by its share of the softmax."""
    arrays, _ = Case(causal=False).arrays()
    q, k, v = map(jnp.asarray, arrays[:3])
    attend = partial(flash_attention, q, causal=False, return_lse=True, implementation=implementation)
    (out_1, lse_1), (out_2, lse_2), (out, lse) = (
        attend(k[:, p], v[:, p]) for p in (slice(25), slice(25, None), slice(None))
    )
    both = jnp.logaddexp(lse_1, lse_2)
    np.testing.assert_allclose(both, lse, atol=1e-5)
    share = lambda part: jnp.exp(part - both).swapaxes(1, 2)[..., None]  # noqa: E731
    np.testing.assert_allclose(out_1 * share(lse_1) + out_2 * share(lse_2), out, atol=2e-6)


def test_composes_with_vmap_and_checkpoint(implementation):
    case = Case(documents=3)
    (q, k, v, *_), ids = case.arrays()
    ids_BT = jnp.asarray(ids["q_segment_ids"])

    def loss(q, k, v, ids):
        return jnp.sum(flash_attention(q, k, v, q_segment_ids=ids, implementation=implementation) ** 2)

    wanted = jax.jit(jax.grad(loss, (0, 1, 2)))(*map(jnp.asarray, (q, k, v)), ids_BT)
    row = lambda *args: loss(*(x[None] for x in args))  # noqa: E731
    by_row = jax.jit(jax.vmap(jax.grad(row, (0, 1, 2))))(*map(jnp.asarray, (q, k, v)), ids_BT)
    kept = jax.checkpoint(loss, policy=jax.checkpoint_policies.save_only_these_names("attention_out"))
    again = jax.jit(jax.grad(kept, (0, 1, 2)))(*map(jnp.asarray, (q, k, v)), ids_BT)
    for a, b, c in zip(wanted, by_row, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_a_policy_that_keeps_attention_out_does_not_run_the_forward_pass_again():
    def layer(x, _):
        return flash_attention(x, x, x, implementation="blockwise"), None

    q = jax.ShapeDtypeStruct((1, 32, 2, 8), jnp.float32)
    transcendentals = {}
    for name in ("attention_out", "nothing"):
        policy = jax.checkpoint_policies.save_only_these_names(name)
        kept = jax.checkpoint(layer, policy=policy)
        compiled = (
            jax.jit(jax.grad(lambda q, kept=kept: jnp.sum(jax.lax.scan(kept, q, length=3)[0]))).lower(q).compile()
        )
        transcendentals[name] = compiled.cost_analysis()["transcendentals"]
    assert transcendentals["attention_out"] < transcendentals["nothing"]


@pytest.mark.parametrize("rows", [4, 3])
def test_over_a_mesh_it_is_the_same_rows_that_do_not_divide_included(rows, implementation):
    mesh = mesh_of(2, 2)
    case = Case(B=rows, documents=3)
    (q, k, v, *_), ids = case.arrays()
    attend = partial(auto_layout(mesh).attention, implementation=implementation, q_offset=0)

    def loss(q, k, v, attend):
        return jnp.sum(attend(q, k, v, **{name: jnp.asarray(x) for name, x in ids.items()}) ** 2)

    plain = partial(flash_attention, implementation=implementation)
    wanted = jax.jit(jax.grad(partial(loss, attend=plain), (0, 1, 2)))(q, k, v)
    split = jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp") if rows == 4 else None))
    placed = jax.device_put((q, k, v), split)
    compiled = jax.jit(jax.grad(partial(loss, attend=attend), (0, 1, 2))).lower(*placed).compile()
    if rows == 4:
        assert "all-gather" not in compiled.as_text()
    for a, b in zip(wanted, compiled(*placed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_unknown_implementations_and_uneven_heads_are_refused():
    (q, k, v, *_), _ = Case().arrays()
    with pytest.raises(ValueError, match="unknown; use one of tpu, cudnn, blockwise"):
        flash_attention(q, k, v, implementation="fast")
    with pytest.raises(ValueError, match="not a multiple"):
        flash_attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match="give kv_segment_ids too"):
        flash_attention(q[:, :3], k, v, q_segment_ids=jnp.ones((2, 3), jnp.int32))
