"""The tables of Hugging Face's names: every parameter has a place, both ways, and what has none is refused."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest

from lm.config import ModelConfig, default
from lm.errors import ConfigError
from lm.interop.families import config_json, family_of
from lm.interop.names import from_parameters, tensors, to_parameters
from lm.model.flops import parameter_shapes
from lm.presets import PRESETS, preset
from lm.resolve import resolve

SMALL = {"num_layers": 6, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 48, "vocab_size": 64}


def small(name: str, **changes) -> ModelConfig:
    config = default()
    config.model.update(preset(name) | SMALL | changes)
    config.data.sequence_length = 16
    return resolve(config).model


def ours(name: str) -> ModelConfig:
    if name.startswith("gpt2"):
        return small(name, num_kv_heads=4, max_positions=16)
    if name.startswith("gemma"):
        return small(name, embedding_scale=32**0.5)
    return small(name, **({"num_experts": 4, "experts_per_token": 2} if "num_experts" in PRESETS[name] else {}))


ONE_OF_A_KIND = ("gpt2", "llama_7b", "mistral_7b", "mixtral_8x7b", "qwen2_7b", "qwen3_8b", "qwen3_30b_a3b", "gemma2_2b")


@pytest.mark.parametrize("name", [*ONE_OF_A_KIND, "gemma3_4b"])
def test_every_parameter_goes_there_and_comes_back(name):
    model = ours(name)
    family, shapes = family_of(model), parameter_shapes(model)
    draw = np.random.default_rng(0)
    params = {path: draw.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    table = tensors(family.names, shapes)
    theirs = dict(zip([tensor.name for tensor in table], from_parameters(table, params.__getitem__), strict=True))
    assert len(theirs) == len(table), "two tensors of one name"
    assert {name: array.shape for name, array in theirs.items()} == {tensor.name: tensor.shape for tensor in table}
    assert sum(array.size for array in theirs.values()) == sum(array.size for array in params.values())
    back = to_parameters(family.names, shapes, theirs.__getitem__)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_family(name):
    config = default()
    config.model.update(preset(name))
    config.data.sequence_length = 16
    model = resolve(config).model
    family = family_of(model)
    expected = name.rstrip("_0123456789bmkaeli.uxdrg")  # gpt2_xl, llama3.1_8b, qwen3_30b_a3b, …
    assert family.model_type.startswith(expected[:4])
    assert config_json(family, model, max_positions=16, eot_id=0, dtype="float32")["vocab_size"] == model.vocab_size


@pytest.mark.parametrize(
    ("field", "value", "also"),
    [
        ("value_embeddings", True, {}),
        ("mup_base_width", 16, {}),
        ("norm_placement", "post", {}),
        ("block", "package.module:Name", {}),
        ("logit_softcap", 15.0, {}),
        ("attention_scale", 0.3, {}),
        ("embedding_scale", 2.0, {}),
        ("positions", "none", {}),
        ("activation", "relu2", {}),
        ("window", (4, 8, None), {}),
        ("rope_base", (1e4, None), {}),
        ("expert_capacity", 1.5, {"num_experts": 4}),
    ],
)
def test_what_no_family_computes_is_refused_by_its_field(field, value, also):
    model = dataclasses.replace(small("llama_7b"), **{field: value}, **also)
    with pytest.raises(ConfigError, match=rf"^config\.model\.{field}="):
        family_of(model)


def test_biases_that_only_they_have_are_zero():
    model = small("gpt2", num_kv_heads=4, max_positions=16, bias=())
    family, shapes = family_of(model), parameter_shapes(model)
    zeros = family.zero_biases(model)
    table = tensors(family.names, shapes, zeros)
    read = lambda path: np.ones(shapes[path], np.float32)  # noqa: E731
    for tensor, array in zip(table, from_parameters(table, read, zeros), strict=True):
        assert np.all(array == (0 if tensor.name.endswith("bias") else 1)), tensor.name
    biases = [tensor.name for tensor in table if tensor.name.endswith("bias")]
    assert len(biases) == 6 * model.num_layers + 1


def test_one_parameter_is_in_memory_at_a_time():
    model = small("llama_7b")
    shapes, alive, most = parameter_shapes(model), weakref.WeakSet(), []

    class Array(np.ndarray):
        __hash__ = object.__hash__

    def read(path):
        most.append(len(alive))
        array = np.zeros(shapes[path], np.float32).view(Array)
        alive.add(array)
        return array

    arrays = from_parameters(tensors(family_of(model).names, shapes), read)
    while next(arrays, None) is not None:
        pass
    assert most == [0] * len(shapes), "each is read once, when the one before it is gone"
