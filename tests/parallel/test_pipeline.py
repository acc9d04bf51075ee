"""The pipeline computes what the layers do one after another, and sends what its schedule asks for."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.axes import BATCH_AXES
from lm.config import ParallelConfig
from lm.model import Transformer
from lm.parallel.mesh import make_mesh
from lm.parallel.pipeline import _permutes, bubble_fraction, make_pipeline
from lm.parallel.region import region
from lm.parallel.topology import describe
from tests.parallel.common import assert_close, collectives, mesh_with, model_gradients, summed
from tests.train.common import small_config

KEY = jax.random.key(1)
B, T, D, F = 2, 4, 8, 16  # rows of a micro-batch on one device
MICRO_BATCHES, PARAMS = P("stage", BATCH_AXES), {"up": P("stage", None, "tensor"), "down": P("stage", "tensor")}


def toy_blocks(params, x_bTD, side, first_layer, key, *, mean=lambda x: x, total=lambda x: x):
    """Layers whose order, rows, numbers and keys matter, and whose norm has no gradient at zero.

    `mean` and `total` are over the devices that share F.
    """

    @jax.checkpoint
    def layer(x_bTD, xs):
        params, number = xs
        in_bTD = x_bTD / jnp.linalg.norm(x_bTD, axis=-1, keepdims=True)
        in_bTD = in_bTD + 0.1 * jnp.sin(side["tokens"] + number.astype(jnp.float32))[..., None]
        hidden_bTF = jnp.tanh(jnp.einsum("bTD,DF->bTF", in_bTD, params["up"]))
        hidden_bTF *= 1 + 0.1 * (jax.random.key_data(jax.random.fold_in(key, number))[-1] % 7).astype(jnp.float32)
        out_bTD = x_bTD + total(jnp.einsum("bTF,FD->bTD", hidden_bTF, params["down"]))
        return out_bTD, mean(jnp.mean(hidden_bTF**2)) * (1 + number)

    x_bTD, aux_L = jax.lax.scan(layer, x_bTD, (params, first_layer + jnp.arange(params["up"].shape[0])))
    return x_bTD, {"size": jnp.sum(aux_L)}


def toy_inputs(layers, micro, rows=B):
    """Parameters, and of each micro-batch its rows, tokens and weight."""
    random = np.random.default_rng(0)
    normal = lambda *shape, std=1.0: jnp.asarray(random.normal(0, std, shape), jnp.float32)  # noqa: E731
    params = {"up": normal(layers, D, F, std=0.4), "down": normal(layers, F, D, std=0.4)}
    tokens = jnp.asarray(random.integers(0, 9, (micro, rows, T)), jnp.int32)
    return params, normal(micro, rows, T, D), tokens, 1 + jnp.arange(micro, dtype=jnp.float32)


def loss_and_aux(pipeline, params, x_MbTD, tokens_MbT, weight_M):
    """A loss that is different for each micro-batch and dimension."""
    flat = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731
    x_BTD, aux = pipeline(params, flat(x_MbTD), {"tokens": flat(tokens_MbT)}, KEY)
    terms_MD = jnp.mean(jnp.square(x_BTD).reshape(len(weight_M), -1, D), axis=1)
    loss = jnp.sum(terms_MD * weight_M[:, None] * jnp.linspace(0.5, 1.5, D)[None])
    return loss + 0.1 * sum(jnp.sum(a_M * weight_M) for a_M in aux.values()), aux


def in_turn(blocks, micro):
    """The micro-batches one after another through all layers."""

    def pipeline(params, x_BTD, side, key):
        split = lambda a: a.reshape(micro, -1, *a.shape[1:])  # noqa: E731

        def one(m):
            rows = {name: split(a)[m] for name, a in side.items()}
            return blocks(params, split(x_BTD)[m], rows, jnp.int32(0), jax.random.fold_in(key, m))

        outs = [one(m) for m in range(micro)]
        aux = jax.tree.map(lambda *a: jnp.stack(a), *[aux for _, aux in outs])
        return jnp.concatenate([x for x, _ in outs]), aux

    return pipeline


def value_and_grad(pipeline, tensor=1):
    """Return a function to (loss, aux, gradients with respect to the parameters and x)."""

    def both(params, x_MbTD, *rest):
        def share(params, x_MbTD):
            loss, aux = loss_and_aux(pipeline, params, x_MbTD, *rest)
            return loss / tensor, aux

        (loss, aux), gradients = jax.value_and_grad(share, (0, 1), has_aux=True)(params, x_MbTD)
        return loss, aux, gradients

    return both


def toy_on(mesh, micro, repeats):
    """The pipeline of the toy in the region, which has the layers' hidden units over `tensor`."""
    tensor = mesh.shape["tensor"]
    blocks = toy_blocks
    if tensor > 1:
        over = {"mean": lambda x: jax.lax.pmean(x, "tensor"), "total": lambda x: jax.lax.psum(x, "tensor")}
        blocks = functools.partial(toy_blocks, **over)
    return functools.partial(make_pipeline(mesh.shape["stage"], micro_batches=micro, repeats=repeats), blocks)


def gradients_on(mesh, micro, repeats):
    """`value_and_grad` of whole arrays: its results are the devices' sums."""

    def local(*args):
        loss, aux, gradients = value_and_grad(toy_on(mesh, micro, repeats), mesh.shape["tensor"])(*args)
        aux = summed(mesh, aux, {"size": P(("stage", "tensor"))})  # the same on all devices of `tensor`
        return summed(mesh, loss, P()), aux, summed(mesh, gradients, (PARAMS, MICRO_BATCHES))

    args = (PARAMS, MICRO_BATCHES, MICRO_BATCHES, P("stage"))
    return region(mesh, local, args, (P(), P("stage"), (PARAMS, MICRO_BATCHES)))


def place(mesh, tree, specs):
    return jax.tree.map(lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)), tree, specs)


def assert_same(got, expected):
    """Within 1e-5 of the norm, leaf by leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and np.isfinite(a).all()
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-5 * np.linalg.norm(np.asarray(b))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("sizes", "micro", "repeats"),
    [
        ({"stage": 2}, 2, 1),
        ({"stage": 2}, 4, 2),
        slow({"stage": 3}, 6, 1),
        slow({"stage": 4}, 4, 1),
        slow({"stage": 4}, 8, 1),
        slow({"stage": 4}, 4, 3),
        slow({"stage": 4}, 8, 2),
        slow({"stage": 4}, 8, 4),
        slow({"stage": 2, "data": 2}, 4, 1),
        slow({"stage": 4, "data": 2}, 8, 2),
        slow({"stage": 2, "tensor": 2}, 4, 2),
        slow({"stage": 4, "tensor": 2}, 8, 1),
        slow({"stage": 2, "tensor": 2, "data": 2}, 4, 1),
        slow({"stage": 2, "tensor": 2, "data": 2}, 4, 2),
    ],
)
def test_loss_and_gradients_are_those_of_the_layers_in_turn(sizes, micro, repeats):
    """Also with layers whose gradient at zero is not finite: nothing of the bubble is used, and it holds no zeros."""
    mesh, shards = mesh_with(**sizes), sizes.get("data", 1)
    params, x_MbTD, tokens_MbT, weight_M = toy_inputs(2 * sizes["stage"] * repeats, micro, shards * B)
    got = jax.jit(gradients_on(mesh, micro, repeats))(params, x_MbTD, tokens_MbT, weight_M)
    plain = jax.jit(value_and_grad(in_turn(toy_blocks, micro)))
    rows = zip(jnp.split(x_MbTD, shards, axis=1), jnp.split(tokens_MbT, shards, axis=1), strict=True)
    each = [plain(params, *own, weight_M) for own in rows]
    expected = jax.tree.map(lambda *a: sum(a), *[(loss, aux, grads[0]) for loss, aux, grads in each])
    assert_same((got[0], got[1], got[2][0]), expected)
    assert_same(got[2][1], jnp.concatenate([grads[1] for _, _, grads in each], axis=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "repeats", "overrides"),
    [
        ({"stage": 2, "fsdp": 2, "tensor": 2}, 1, {}),
        ({"stage": 2, "fsdp": 2, "tensor": 2}, 2, {"model.value_embeddings": "True"}),
        ({"stage": 2, "context": 2, "expert": 2}, 2, {"model.num_experts": "4", "model.d_ff": "32"}),
    ],
    ids=str,
)
def test_a_models_gradients_are_those_of_one_device(sizes, repeats, overrides):
    """Beside all other axes, with each layer's parameters gathered over `fsdp`; a router's losses are its stage's own."""
    parallel = {f"parallel.{axis}": str(size) for axis, size in sizes.items()} | {"parallel.zero": "3"}
    parallel |= {"parallel.pipeline_repeats": str(repeats), "parallel.data": "1"}
    model = {"model.num_layers": "4", "optimizer.accumulation_steps": "4"} | overrides
    config = small_config(math.prod(sizes.values()), **model, **parallel)
    params = Transformer(config.model, config.precision).init(jax.random.key(0))
    loss, sums, grads = model_gradients(small_config(**model), mesh_with(data=1), params, micro=4)
    got, got_sums, got_grads = model_gradients(config, mesh_with(**sizes), params, micro=4)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    assert got_sums.keys() == sums.keys() and ("router_balance_loss" in sums) == ("model.num_experts" in overrides)
    for name in sums:
        np.testing.assert_allclose(got_sums[name], sums[name], rtol=1e-5, err_msg=name)
    assert_close(got_grads, grads)


@pytest.mark.parametrize(("stages", "micro", "repeats"), [(2, 4, 1), (4, 8, 2)])
def test_a_tick_sends_two_micro_batches_and_nothing_gathers_parameters(stages, micro, repeats):
    """Two permutes in the loop and one after it; with repeats each leaf is exchanged in so many parts."""
    mesh = mesh_with(stage=stages)
    params, x_MbTD, tokens_MbT, _ = toy_inputs(stages * repeats, micro)
    flat = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731
    args = (params, flat(x_MbTD), {"tokens": flat(tokens_MbT)}, KEY)
    run = region(mesh, toy_on(mesh, micro, repeats), (PARAMS, P("stage"), P("stage"), P()), (P("stage"), P("stage")))
    expected = {("collective-permute", (B, T, D)): 3, ("all-gather", (micro * B, T)): 1}
    expected[("reduce-scatter", (micro // stages,))] = 1
    if repeats > 1:
        expected |= {("collective-permute", part): repeats for part in ((1, D, F), (1, F, D))}
    assert collectives(jax.jit(run).lower(*args).compile().as_text()) == expected


def test_a_circular_pipeline_keeps_no_parameters_for_the_backward_pass():
    stages, repeats, micro, wide = 2, 3, 4, 64
    mesh = mesh_with(stage=stages)
    shapes = {"up": (stages * repeats, D, wide * F), "down": (stages * repeats, wide * F, D)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    args = (place(mesh, params, PARAMS), *toy_inputs(1, micro)[1:])
    compiled = jax.jit(gradients_on(mesh, micro, repeats)).lower(*args).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    own = sum(a.nbytes for a in params.values()) / stages
    assert temporary < 3 * own, "parts, gradients of parts and of layers; a part for each of 13 ticks is 4.3 times more"


def test_every_part_arrives_once_at_the_stage_that_needs_it():
    for stages, repeats in np.ndindex(8, 9):
        part_RS, to_RS = _permutes(stages + 1, repeats + 1)
        assert all(sorted(to_S) == list(range(stages + 1)) for to_S in to_RS), "a permutation of the stages"
        assert all(sorted(part_R) == list(range(repeats + 1)) for part_R in part_RS.T), "each part is sent once"


def test_the_bubble_is_that_of_the_schedule():
    assert bubble_fraction(4, 8) == pytest.approx(3 / 11)
    assert bubble_fraction(4, 8, 2) == pytest.approx(3 / 19)
    assert bubble_fraction(1, 3, 2) == 0


@pytest.mark.parametrize("micro", [0, 1, 3])
def test_micro_batches_that_are_not_a_multiple_of_the_stages_are_refused(micro):
    with pytest.raises(ValueError, match=f"2 stages, {micro} micro-batches, 1 repeats"):
        make_pipeline(2, micro_batches=micro)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="of 1 stages"):
        make_pipeline(1, micro_batches=2)
    with pytest.raises(ValueError, match="2 micro-batches, 0 repeats"):
        make_pipeline(2, micro_batches=2, repeats=0)
    params, x_MbTD, *_ = toy_inputs(3, 3)
    with pytest.raises(ValueError, match="3 layers of a stage .* 2 repeats"):
        make_pipeline(2, micro_batches=2, repeats=2)(toy_blocks, params, x_MbTD[0], {})
    with pytest.raises(ValueError, match="3 rows .* 2 micro-batches"):
        make_pipeline(2, micro_batches=4)(toy_blocks, params, x_MbTD[:, 0], {})


@pytest.mark.aot
@pytest.mark.parametrize(("micro", "repeats"), [(4, 1), (4, 2)])
def test_a_pipeline_with_tensor_and_data_parallelism_compiles_for_a_tpu(micro, repeats):
    mesh = make_mesh(ParallelConfig(stage=2, data=2, tensor=2), describe("v5e:2x4").devices)
    specs = (PARAMS, MICRO_BATCHES, MICRO_BATCHES, P("stage"))
    abstract = lambda a, spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    args = jax.tree.map(abstract, toy_inputs(2 * repeats, micro, 2 * B), specs)
    lowered = jax.jit(gradients_on(mesh, micro, repeats)).lower(*args)
    compiled = lowered.compile(compiler_options={"optimization_level": 9})  # XLA's O0: faster
    sent = collectives(compiled.as_text())
    permutes = {shape: count for (kind, shape), count in sent.items() if kind == "collective-permute"}
    # Each pass: two in the loop, one after it, and the parts of both leaves.
    parts = {(1, D, F // 2): 4 * repeats} if repeats > 1 else {}
    assert permutes == {(B, T, D): 6} | parts
    gathered = [math.prod(shape) for kind, shape in sent if kind == "all-gather"]
    assert gathered and max(gathered) <= micro * B * T, "tokens alone"
