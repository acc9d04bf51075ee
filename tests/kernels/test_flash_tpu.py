"""The TPU kernels, interpreted: against a definition in float64, with races looked for, and what they skip."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where races are reported
from jax.experimental.pallas import tpu as pltpu

from lm.kernels.flash_attention import flash_attention, tpu
from lm.kernels.flash_attention.options import MASKED, Options
from lm.kernels.flash_attention.plan import make_plan
from tests.kernels.attention_cases import define

BLOCK = 128
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}  # of the global norm


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes and options of one call."""

    B: int = 1
    T: int = 256
    S: int = 256
    N: int = 2
    K: int = 1
    H: int = 128
    dtype: str = "float32"
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    documents: tuple[int, ...] = ()  # their lengths, ids from 0
    offset: int = 0
    traced_offset: bool = False
    block_q: int = BLOCK
    block_k: int = BLOCK
    vmem_bytes: int = 2**26

    @property
    def options(self) -> Options:
        return Options(self.causal, self.window, self.softcap, self.H**-0.5)

    @property
    def sizes(self) -> tpu.Sizes:
        return tpu.Sizes(self.block_q, self.block_k, vmem_bytes=self.vmem_bytes)

    def arrays(self, seed=0):
        random = np.random.default_rng(seed)
        shapes = [(self.B, self.T, self.N, self.H), *[(self.B, self.S, self.K, self.H)] * 2]
        shapes += [shapes[0], (self.B, self.N, self.T)]
        q, k, v, dout, dlse = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
        return *(jnp.asarray(x, self.dtype) for x in (q, k, v, dout)), jnp.asarray(dlse)

    def segments(self):
        """Return the ids of queries and keys, or None and None; each row's documents are those before it, rotated."""
        if not self.documents:
            return None, None
        lengths = [np.roll(self.documents, b) for b in range(self.B)]
        ids = np.stack([np.repeat(np.arange(len(row)), row) for row in lengths]).astype(np.int32)
        return jnp.asarray(ids[:, self.offset : self.offset + self.T]), jnp.asarray(ids[:, : self.S])

    def mask(self):
        """Return who sees whom, `[B, T, S]`."""
        q, k = self.offset + np.arange(self.T)[:, None], np.arange(self.S)[None, :]
        mask = np.ones((self.B, self.T, self.S), bool)
        if self.causal or self.window is not None:
            mask &= (k <= q)[None]
        if self.window is not None:
            mask &= (k > q - self.window)[None]
        if self.documents:
            q_ids, k_ids = (np.asarray(ids) for ids in self.segments())
            mask &= q_ids[:, :, None] == k_ids[:, None, :]
        return mask


def interpreted(function):
    """Run under the TPU interpreter, which fills what was not written with NaN, and see that nothing races."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
            result = jax.block_until_ready(function(*args, **kwargs))
        assert not interpret_pallas_call.races.races_found
        return result

    return run


def with_offset(case, function):
    """Call with the case's offset, traced or not."""
    return jax.jit(function)(jnp.int32(case.offset)) if case.traced_offset else function(case.offset)


@interpreted
def forward(case, q, k, v, **more):
    def run(offset):
        return tpu.forward(q, k, v, *case.segments(), offset, case.options, case.sizes, **more)

    return with_offset(case, run)


@interpreted
def backward(case, q, k, v, out, lse, dout, dlse, **more):
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1).swapaxes(1, 2) - dlse

    def run(offset):
        ids = case.segments()
        return tpu.backward(q, k, v, *ids, offset, lse, dout, delta, case.options, case.sizes, **more)

    return with_offset(case, run)


def off_by(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def check(case):
    q, k, v, dout, dlse = case.arrays()
    out, lse = forward(case, q, k, v)
    gradients = backward(case, q, k, v, out, lse, dout, dlse)
    expected = define(q, k, v, dout, dlse, mask_BTS=case.mask(), scale=case.options.scale, softcap=case.softcap)
    assert out.dtype == q.dtype and lse.dtype == jnp.float32
    assert [x.dtype for x in gradients] == [q.dtype, k.dtype, v.dtype]
    seen = case.mask().any(-1)
    assert (np.asarray(lse, np.float64)[~np.broadcast_to(seen[:, None], lse.shape)] <= 0.99 * MASKED).all()
    seen_BNT = np.broadcast_to(seen[:, None], lse.shape)
    for name, actual, wanted in zip(
        ("out", "lse", "dq", "dk", "dv"),
        (out, np.asarray(lse)[seen_BNT], *gradients),
        (expected[0], expected[1][seen_BNT], *expected[2:]),
        strict=True,
    ):
        assert off_by(actual, wanted) < TOLERANCE[case.dtype], name
    for hidden in (out, gradients[0]):
        np.testing.assert_array_equal(np.asarray(hidden, np.float32)[~seen], 0)


def test_causal_grouped_queries_match_the_definition():
    check(Case())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(causal=False, N=2, K=2),
        Case(window=100, softcap=1.5, H=64),
        Case(causal=False, window=60, block_k=256, S=300),
        Case(documents=(90, 100, 66), B=2, softcap=3.0),
        Case(documents=(90, 100, 66), causal=False, H=80),
        Case(T=70, S=300, offset=230, N=4, K=2, H=96),
        Case(T=200, S=300, offset=60, traced_offset=True, window=150),
        Case(T=200, S=130, causal=False),
        Case(T=300, S=130),  # the last queries see all keys
        Case(T=130, S=200, offset=-40),  # the first queries see none
        Case(T=256, S=384, N=4, K=2, vmem_bytes=2**20, causal=False, documents=(200, 184)),
        Case(T=512, S=512, block_q=256, block_k=512, documents=(300, 212), window=200),
        Case(dtype="bfloat16", H=128),
        Case(dtype="bfloat16", H=256, softcap=2.0, window=100, N=1),
        Case(dtype="bfloat16", T=300, S=300, documents=(100, 150, 50), N=4, K=2),
    ],
    ids=str,
)
def test_every_option_matches_the_definition(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.builds(
        lambda T, more, K, G, cuts, **rest: Case(
            T=T, S=T + more, K=K, N=K * G, offset=more, documents=tuple(np.diff([0, *cuts, T + more])), **rest
        ),
        T=st.sampled_from([100, 128, 200]), more=st.sampled_from([0, 56]), K=st.sampled_from([1, 2]),
        G=st.sampled_from([1, 2]), H=st.sampled_from([64, 80]), causal=st.booleans(), cuts=st.sampled_from([(), (70,)]),
        window=st.sampled_from([None, 1, 90]), softcap=st.sampled_from([None, 3.0]), traced_offset=st.booleans(),
        block_k=st.sampled_from([128, 256]), dtype=st.sampled_from(["float32", "bfloat16"]),
    )
)  # fmt: skip
def test_options_together_match_the_definition(case):
    check(dataclasses.replace(case, documents=case.documents if len(case.documents) > 1 else ()))


@pytest.mark.slow
def test_composes_with_vmap_and_offsets_that_differ_by_row():
    q, k, v, *_ = Case(B=2, T=128, S=256, K=2).arrays()
    offsets = jnp.array([100, 17])

    def loss(implementation, q, k, v, offset):
        return jnp.sum(flash_attention(q, k, v, window=60, q_offset=offset, implementation=implementation) ** 2)

    def row(implementation, q, k, v, offset):
        return loss(implementation, q[None], k[None], v[None], offset)

    run = interpreted(lambda function: jax.jit(function)(q, k, v, offsets))
    gradient = lambda function, name: jax.grad(functools.partial(function, name), (0, 1, 2))  # noqa: E731
    wanted = run(gradient(loss, "reference"))
    for got in (run(gradient(loss, "tpu")), run(jax.vmap(gradient(row, "tpu")))):
        for ours, theirs in zip(got, wanted, strict=True):
            assert off_by(ours, theirs) < TOLERANCE["float32"]


def gradients_of(case, arrays):
    """Return every output of both passes by name."""
    q, k, v, dout, dlse = arrays
    out, lse = forward(case, q, k, v)
    dq, dk, dv = backward(case, q, k, v, out, lse, dout, dlse)
    return {"out": out, "lse": lse.swapaxes(1, 2), "dq": dq, "dk": dk, "dv": dv}


@pytest.mark.slow
@pytest.mark.parametrize("document", [0, 1])
@pytest.mark.parametrize("lengths, poison", [((90, 166), 1e4), ((128, 128), np.nan)], ids=["in a block", "skipped"])
def test_nothing_leaks_between_documents(lengths, poison, document):
    """What the other document holds changes nothing, bit for bit; blocks that are skipped whole may hold NaN."""
    case = Case(documents=lengths, causal=False)
    arrays = case.arrays()
    hidden = (np.asarray(case.segments()[0])[0] != document)[None, :, None, None]
    poisoned = [jnp.where(hidden, poison, x) for x in arrays[:4]]
    clean, dirty = gradients_of(case, arrays), gradients_of(case, (*poisoned, arrays[4]))
    for name, value in clean.items():
        np.testing.assert_array_equal(value[:, ~hidden[0, :, 0, 0]], dirty[name][:, ~hidden[0, :, 0, 0]], name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(T=512, S=512, documents=(100, 156, 200, 56), B=2, N=1),
        Case(T=512, S=512, window=130, N=1, K=1),
        Case(T=256, S=512, offset=256, traced_offset=True, N=1, window=200),
        Case(T=256, S=512, documents=(256, 256), causal=False, N=1, vmem_bytes=2**20),
    ],
    ids=["packed", "windowed", "offset", "packed, keys in chunks"],
)
def test_blocks_are_computed_and_fetched_as_planned(case):
    """The kernels count what they do: a step for each visible block, and no fetch for a step that is skipped."""
    q, k, v, dout, dlse = case.arrays()
    q_ids, k_ids = case.segments()
    masks = {"causal": case.causal, "window": case.window, "q_offset": case.offset}
    plan = make_plan(case.T, case.S, BLOCK, BLOCK, q_segment_ids=q_ids, kv_segment_ids=k_ids, **masks).of_queries
    blocks = np.broadcast_to(np.asarray(plan.hi - plan.lo)[:, None], (case.B, case.N, case.T // BLOCK))
    assert blocks.sum() < 0.8 * case.B * case.N * case.T * case.S / BLOCK**2
    out, lse, counts = forward(case, q, k, v, count_steps=True)
    np.testing.assert_array_equal(counts[..., 0], blocks)
    np.testing.assert_array_equal(counts[..., 1], blocks)
    *_, counts = backward(case, q, k, v, out, lse, dout, dlse, count_steps=True)
    np.testing.assert_array_equal(counts[..., 0], blocks)
    if case.vmem_bytes == 2**26:  # a chunk without visible blocks has one key block anyway
        np.testing.assert_array_equal(counts[..., 1], blocks)


@pytest.mark.slow
@pytest.mark.parametrize("offset, window", [(-256, None), (1000, 100)], ids=["later", "out of the window"])
def test_keys_that_no_query_reaches_cost_no_step(offset, window):
    case = Case(offset=offset, traced_offset=True, window=window)
    q, k, v, dout, dlse = case.arrays()
    out, lse, steps = forward(case, q, k * np.nan, v * np.nan, count_steps=True)
    *grads, steps_back = backward(case, q, k * np.nan, v * np.nan, out, lse, dout, dlse, count_steps=True)
    np.testing.assert_array_equal(lse, np.float32(MASKED))
    for x in (out, *grads, steps[..., 0], steps_back[..., 0]):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize(
    "size, block, expected", [(1100, 1024, 768), (4096, 1024, 1024), (70, 1024, 128), (300, 128, 128)]
)
def test_blocks_pad_little(size, block, expected):
    assert tpu._even_block(size, block) == expected
