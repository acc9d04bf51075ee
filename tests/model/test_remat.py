"""Remat policies: what each keeps, in bytes known beforehand; none changes a gradient."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.capabilities import Capabilities
from lm.config import BIASES, apply_overrides, default
from lm.errors import ConfigError
from lm.model import Transformer
from lm.model.memory import kept_bytes
from lm.resolve import resolve
from tests.model.common import SHAPES, small_batch

B, T, N = 3, 12, 4
TPU = Capabilities(platform="tpu", device_kind="TPU v5 lite")


def model_of(remat: str, capabilities=TPU, **overrides: str) -> Transformer:
    config = default()
    small = {"model.num_layers": "4", "model.d_model": "64", "model.num_heads": "4", "model.vocab_size": "96"}
    apply_overrides(config, list((small | {"model.remat": remat} | overrides).items()))
    config = resolve(config, capabilities=capabilities)
    return Transformer(config.model, config.precision)


@pytest.mark.parametrize(
    "policy", ["none", "full", "dots", "attention_out", " query, mlp_up ", "dots,mlp_hidden", "offload:block_input"]
)
def test_policies_are_accepted(policy):
    assert model_of(policy).config.remat == policy


@pytest.mark.parametrize(
    "policy, says",
    [
        ("mlp_hiden", 'Did you mean "mlp_hidden"?'),
        ("ful", 'Did you mean "full"?'),
        ("query,full", "'full' is not the name of an activation"),
        ("offload:dots", "'dots' is not the name of an activation"),
        ("query,offload:query", "query is both kept and offloaded"),
        ("offload:", "at least one"),
        ("", "at least one"),
    ],
)
def test_other_policies_are_refused_with_what_is_accepted(policy, says):
    with pytest.raises(ConfigError, match="config.model.remat") as error:
        model_of(policy)
    assert says in str(error.value)


def test_offload_is_refused_where_the_host_is_the_device():
    with pytest.raises(ConfigError, match="on cpu the device's memory is the host's"):
        model_of("offload:attention_out", Capabilities())
    assert model_of("attention_out", Capabilities()).config.remat == "attention_out"


def test_a_block_of_ones_own_may_keep_names_of_its_own():
    overrides = {"model.block": "tests.model.test_remat:Own", "model.remat": "my_name"}
    config = default()
    apply_overrides(config, list(overrides.items()))
    assert resolve(config).model.remat == "my_name"


def residuals(model: Transformer) -> Counter:
    """Return how many arrays of which (shape, type) the forward pass hands to the backward pass."""
    ids_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def backward(params, ids_BT):
        return jax.vjp(lambda params: model.hidden(params, ids_BT, ids_BT, ids_BT)[0], params)[1]

    return Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(backward, params, ids_BT)))


LISTS = ["none", "full", "dots", "query,key,value,attention_out", "mlp_input,mlp_hidden"]
FAST = {("none", "llama"), ("none", "qk_norm_window_softcaps"), ("dots", "gpt2"), ("mlp_input,mlp_hidden", "llama")}


# In bf16 what stays f32 is the architecture's, kept by "none"; what a policy names is in the compute type in any.
@pytest.mark.parametrize(
    "policy, shape, compute",
    [
        pytest.param(
            policy, shape, compute, marks=() if compute == "float32" and (policy, shape) in FAST else pytest.mark.slow
        )
        for compute in ("float32", "bfloat16")
        for policy in LISTS
        for shape in SHAPES
        if shape != "mixture" and (compute == "float32" or policy == "none" or shape == "qk_norm_window_softcaps")
    ],
)
def test_what_a_layer_keeps_is_what_the_formula_says(policy, shape, compute):
    """The residuals that are stacked over the layers, less the parameters, which are there anyway."""
    whole = {"model.num_layers": "6"} if shape == "gemma3" else {}  # two periods: nothing outside the scan
    model = model_of(policy, **SHAPES[shape] | {"precision.compute": compute} | whole)
    config = model.config
    groups = config.num_layers // config.period
    params = Counter(
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    )
    grouped = Counter()
    for (size, dtype), count in params.items():
        if size[0] == config.num_layers:
            grouped[(groups, config.period, *size[1:]) if config.period > 1 else size, dtype] += count
    stacked = Counter({key: n for key, n in residuals(model).items() if key[0][:1] == (groups,)})
    kept = stacked - grouped
    got = sum(math.prod(size) * dtype.itemsize * n for (size, dtype), n in kept.items() if size[1:3] == (B, T))
    lse = sum(math.prod(size) * dtype.itemsize * n for (size, dtype), n in kept.items() if size[1:] == (B, N, T))
    device, host = kept_bytes(config, policy, batch=B, length=T, itemsize=model.dtype.itemsize)
    assert (got + lse, 0) == (config.num_layers * device, host)
    assert sum(math.prod(s) * d.itemsize * n for (s, d), n in kept.items()) - got - lse <= 64 * config.num_layers


def gradients(model: Transformer, params):
    ids_BT, positions_BT, segment_ids_BT = small_batch()

    def loss(params):
        hidden_BTD, *_ = model.hidden(params, ids_BT, positions_BT, segment_ids_BT, dropout_key=jax.random.key(5))
        return jnp.sum(hidden_BTD * jnp.cos(jnp.arange(hidden_BTD.size, dtype=jnp.float32)).reshape(hidden_BTD.shape))

    return jax.jit(jax.grad(loss))(params)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "policy, overrides",
    [
        slow("attention_out,offload:block_input,mlp_hidden", {}),  # on a CPU the host's memory is the device's
        slow("full", {"model.window": "(4, None)"}),
        slow("none", {"model.window": "(4, None)"}),  # against one layer per loop iteration
        slow("dots", {"model.activation": "gelu", "model.bias": str(BIASES[:-1]), "model.qk_norm": "True"}),
        slow("query,key,value", {"model.dropout": "0.1"}),
        slow("attention_norm,mlp_input,mlp_norm,mlp_gate,mlp_up", {"model.scan_unroll": "4"}),
    ],
)
def test_no_policy_changes_a_gradient(policy, overrides):
    model = model_of(policy, **overrides)
    params = jax.jit(model.init)(jax.random.key(0))
    reference = model_of("none", **overrides | ({"model.scan_unroll": "2"} if policy == "none" else {}))
    expected, got = (gradients(each, params) for each in (reference, model))
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)
