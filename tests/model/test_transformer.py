"""The transformer: its parameters are the table's, its cache equals recomputing, documents stay apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.axes import PARAMETERS
from lm.model.block import Block
from lm.model.flops import flops_per_token, parameter_counts, parameter_shapes
from lm.model.initializers import sizes
from lm.tree import map_with_path
from tests.model.common import SHAPES, small_batch, small_config, small_model


def shapes_of(params) -> dict[str, tuple[int, ...]]:
    out = {}
    map_with_path(lambda path, leaf: out.__setitem__(path, tuple(leaf.shape)), params)
    return out


def fast_only(*names):
    """Every shape, those not named in the slow tier."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_table_and_of_the_analytic_count(shape):
    model = small_model(**SHAPES[shape])
    shapes = shapes_of(jax.eval_shape(model.init, jax.random.key(0)))
    assert shapes == parameter_shapes(model.config)
    size = sizes(model.config)
    assert shapes == {path: tuple(size[letter] for letter in PARAMETERS[path]) for path in shapes}
    assert parameter_counts(model.config)["total"] == sum(int(np.prod(size)) for size in shapes.values())


@pytest.mark.parametrize("shape", fast_only("gpt2", "qk_norm_window_softcaps"))
def test_decoding_with_a_cache_equals_the_whole_forward_pass(shape):
    model = small_model(**SHAPES[shape])
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_BT, positions_BT, segment_ids_BT = small_batch(documents=1)
    whole, *_ = jax.jit(model.hidden)(params, tokens_BT, positions_BT, segment_ids_BT)
    cache, parts = model.init_cache(2, 16), []
    step = jax.jit(lambda cache, *part: model.hidden(params, *part, cache=cache))
    for cut in (slice(0, 7), *(slice(t, t + 1) for t in range(7, 12))):
        hidden, cache, *_ = step(cache, tokens_BT[:, cut], positions_BT[:, cut], segment_ids_BT[:, cut])
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)
    assert int(cache["length"]) == 12


@pytest.mark.parametrize("shape", fast_only("qk_norm_window_softcaps", "value_embeddings"))
def test_documents_packed_into_one_row_do_not_see_each_other(shape):
    model = small_model(**SHAPES[shape])
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_BT, positions_BT, segment_ids_BT = small_batch()
    hidden = jax.jit(model.hidden)
    packed, *_ = hidden(params, tokens_BT, positions_BT, segment_ids_BT)
    other = tokens_BT.at[:, :6].set((tokens_BT[:, :6] + 1) % 96)
    changed, *_ = hidden(params, other, positions_BT, segment_ids_BT)
    np.testing.assert_array_equal(packed[:, 6:], changed[:, 6:])
    assert not np.array_equal(packed[:, :6], changed[:, :6])
    alone, *_ = hidden(params, tokens_BT[:, 6:], positions_BT[:, 6:], segment_ids_BT[:, 6:])
    np.testing.assert_allclose(packed[:, 6:], alone, atol=1e-5)


def test_a_window_limits_how_far_a_change_reaches():
    """Two layers of window 3 see at most 2 * (3 - 1) tokens back."""
    model = small_model(**{"model.window": "(3,)"})
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_BT, positions_BT, segment_ids_BT = small_batch(documents=1)
    before, *_ = model.hidden(params, tokens_BT, positions_BT, segment_ids_BT)
    after, *_ = model.hidden(params, tokens_BT.at[:, 2].add(1), positions_BT, segment_ids_BT)
    reached = np.abs(np.asarray(before - after)).max((0, 2)) > 0
    assert reached.tolist() == [False] * 2 + [True] * 5 + [False] * 5


def test_a_window_pattern_gives_each_layer_its_own_window():
    """(full, 1): layer 2 sees only itself, so one layer of full attention is all that mixes."""
    mixed = small_model(**{"model.window": "(None, 1)"})
    params = jax.jit(mixed.init)(jax.random.key(0))
    batch = small_batch(documents=1)
    full, *_ = small_model().hidden(params, *batch)
    patterned, *_ = mixed.hidden(params, *batch)
    np.testing.assert_allclose(patterned[:, 0], full[:, 0], atol=1e-6)
    assert np.abs(patterned[:, 1:] - full[:, 1:]).max() > 1e-4


def gradients(model, params):
    def loss(params):
        hidden, *_ = model.hidden(params, *small_batch(), dropout_key=jax.random.key(5))
        return jnp.sum(hidden * jnp.cos(jnp.arange(hidden.size, dtype=jnp.float32)).reshape(hidden.shape))

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"model.remat": "full"}, {"model.remat": "dots"}, {"model.scan_unroll": "2"}])
def test_remat_and_unrolling_change_no_gradient(change):
    base = small_model(**{"model.dropout": "0.1"})
    params = jax.jit(base.init)(jax.random.key(0))
    expected, got = (gradients(model, params) for model in (base, small_model(**{"model.dropout": "0.1"}, **change)))
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.slow
def test_remat_full_keeps_less_for_the_backward_pass():
    def kept(policy):
        model = small_model(**{"model.remat": policy, "model.num_layers": "8"})
        params = jax.eval_shape(model.init, jax.random.key(0))
        batch = [jax.ShapeDtypeStruct((8, 64), jnp.int32)] * 3
        loss = lambda params, *batch: jnp.sum(model.hidden(params, *batch)[0])  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params, *batch).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = kept("none"), kept("dots"), kept("full")
    assert full < 0.5 * none
    assert full < dots < none


def test_dropout_follows_its_key_and_is_off_without_one():
    model = small_model(**{"model.dropout": "0.2"})
    params = jax.jit(model.init)(jax.random.key(0))
    hidden = lambda key: model.hidden(params, *small_batch(), dropout_key=key)[0]  # noqa: E731
    np.testing.assert_array_equal(hidden(jax.random.key(1)), hidden(jax.random.key(1)))
    assert not np.array_equal(hidden(jax.random.key(1)), hidden(jax.random.key(2)))
    np.testing.assert_array_equal(hidden(None), small_model().hidden(params, *small_batch())[0])


def test_compute_is_in_bf16_and_master_weights_stay_f32():
    model = small_model(**{"precision.compute": "bfloat16"})
    params = jax.jit(model.init)(jax.random.key(0))
    hidden, *_ = model.hidden(params, *small_batch())
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact, *_ = small_model().hidden(params, *small_batch())
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact, atol=0.1)


def test_logits_are_soft_capped_and_in_the_output_type():
    model = small_model(**{"model.logit_softcap": "2.0", "precision.compute": "bfloat16"})
    params = jax.jit(model.init)(jax.random.key(0))
    params["embed"]["tokens"]["embedding"] *= 1000
    hidden, *_ = model.hidden(params, *small_batch())
    logits_BTV = model.logits(params, hidden)
    assert logits_BTV.shape == (2, 12, 96)
    assert logits_BTV.dtype == jnp.float32
    assert 1.9 < float(jnp.abs(logits_BTV).max()) <= 2.0


class ParallelBlock(Block):
    """An ablation's own block, named in the config: it doubles what goes through it."""

    def __call__(self, x_BTD, **context):
        out_BTD, cache, aux = super().__call__(x_BTD, **context)
        return 2 * out_BTD, cache, aux


def test_a_block_of_ones_own_is_named_in_the_config():
    own = small_model(**{"model.block": "tests.model.test_transformer:ParallelBlock"})
    params = jax.jit(own.init)(jax.random.key(0))
    assert shapes_of(params) == parameter_shapes(own.config)
    ours, *_ = own.hidden(params, *small_batch())
    plain, *_ = small_model().hidden(params, *small_batch())
    assert np.abs(ours - plain).max() > 1e-3


def test_a_tied_embedding_gets_both_gradients():
    """The gradient of the shared table is that of the lookup plus that of the head, each alone."""
    tied, untied = small_model(), small_model(**{"model.tie_embeddings": "False"})
    params = jax.jit(tied.init)(jax.random.key(0))
    table_VD = params["embed"]["tokens"]["embedding"]

    def loss(model, params):
        logits_BTV = model.logits(params, model.hidden(params, *small_batch()).x_BTD)
        return jnp.sum(jnp.sin(logits_BTV))

    both = jax.grad(lambda p: loss(tied, p))(params)["embed"]["tokens"]["embedding"]
    apart = jax.grad(lambda p: loss(untied, p))({**params, "head": {"kernel": table_VD.T}})
    lookup_VD, head_VD = apart["embed"]["tokens"]["embedding"], apart["head"]["kernel"].T
    np.testing.assert_allclose(both, lookup_VD + head_VD, atol=1e-4 * float(jnp.abs(both).max()))
    assert min(float(jnp.linalg.norm(part)) for part in (lookup_VD, head_VD)) > 0.01 * float(jnp.linalg.norm(both))


def test_a_mixture_reports_what_its_router_does():
    model = small_model(**SHAPES["mixture"])
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_BT, positions_BT, segment_ids_BT = small_batch()
    aux = model.hidden(params, tokens_BT, positions_BT, segment_ids_BT.at[:, 10:].set(0)).aux
    aux = {name: value[0] for name, value in aux.items()}
    assert float(aux["routed_tokens"]) == 2 * 10 * 2 * 2  # rows, tokens that are not padding, experts each, layers
    assert float(aux["dropped_tokens"]) == 0
    assert 1 <= float(aux["expert_load"]) <= 2  # two of four experts can take all
    # A router of zeros is even in probability: the balance loss is at its least, z is log(E)^2.
    params["layers"]["experts"]["router"]["kernel"] *= 0
    aux = {name: value[0] for name, value in model.hidden(params, tokens_BT, positions_BT, segment_ids_BT).aux.items()}
    assert float(aux["router_balance_loss"]) == pytest.approx(1.0)
    assert float(aux["router_z_loss"]) == pytest.approx(np.log(4) ** 2, rel=1e-5)
    capped = small_model(**SHAPES["mixture"], **{"model.expert_capacity": "0.5"})
    dropped = capped.hidden(params, tokens_BT, positions_BT, segment_ids_BT).aux
    assert float(dropped["dropped_tokens"][0] + dropped["routed_tokens"][0]) == 2 * 12 * 2 * 2
    assert float(dropped["dropped_tokens"][0]) > 0


def test_initialization_runs_no_experts():
    """`ragged_dot` has no `vmap` rule for kernels that are the same in every layer, such as zeros."""
    overrides = SHAPES["mixture"] | {"model.experts": "ragged", "model.initializer": "zero_out"}
    config = small_config(**overrides).model
    assert parameter_shapes(config)["layers/experts/down/kernel"] == (2, 4, 32, 64)


def test_mup_scales_the_readout_with_the_width():
    plain, wide = small_model(), small_model(**{"model.mup_base_width": "16"})
    params = jax.jit(plain.init)(jax.random.key(0))
    logits = [model.logits(params, model.hidden(params, *small_batch()).x_BTD) for model in (plain, wide)]
    np.testing.assert_allclose(logits[1], logits[0] / 4, rtol=1e-5, atol=1e-7)


def test_flops_by_hand():
    config = small_config(**{"model.num_kv_heads": "2", "model.window": "(4, None)"}).model
    flops = flops_per_token(config, 8)
    D, N, K, H, F, V = 64, 4, 2, 16, 192, 96
    assert flops["attention_projections"] == 2 * 2 * (D * N * H + 2 * D * K * H + N * H * D)
    assert flops["feed_forward"] == 2 * 2 * 3 * D * F
    assert flops["head"] == 2 * D * V
    window, full = (1 + 2 + 3 + 4 * 5) / 8, (1 + 8) / 2
    assert flops["attention"] == pytest.approx(4 * N * H * (window + full))


def test_flops_of_a_mixture_are_those_of_the_experts_that_a_token_goes_to():
    dense = flops_per_token(small_config(**{"model.d_ff": "64"}).model, 8)["feed_forward"]
    mixture = flops_per_token(small_config(**SHAPES["mixture"]).model, 8)["feed_forward"]
    router = 2 * 2 * 64 * 4
    assert mixture == dense + router  # two experts of 32
