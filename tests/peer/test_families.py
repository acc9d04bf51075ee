"""Each family's preset, made small, gives the logits of Hugging Face's model from the same random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import default
from lm.interop.families import config_json, family_of
from lm.interop.names import from_parameters, tensors, to_parameters
from lm.interop.safetensors import write_sharded
from lm.interop.tokenizer import dump
from lm.model import Transformer
from lm.model.flops import parameter_shapes
from lm.presets import preset
from lm.resolve import resolve
from lm.tree import map_with_path

pytestmark = pytest.mark.peer

L, D, N, K, V, F, T = 3, 64, 4, 2, 128, 96, 24


def our_model(name: str, **small) -> Transformer:
    """The preset's architecture at a small size."""
    config = default()
    config.model.update(preset(name))
    sizes = {"num_layers": L, "d_model": D, "num_heads": N, "num_kv_heads": K, "vocab_size": V, "d_ff": F}
    config.model.update(sizes | small)
    config.data.sequence_length = T
    resolved = resolve(config)
    return Transformer(resolved.model, resolved.precision)


def logits_of(model: Transformer, params, tokens_BT) -> np.ndarray:
    positions_BT = np.tile(np.arange(tokens_BT.shape[1]), (len(tokens_BT), 1))
    with jax.default_matmul_precision("highest"):
        hidden_BTD, *_ = model.hidden(params, tokens_BT, positions_BT, np.ones_like(positions_BT))
        return np.asarray(model.logits(params, hidden_BTD))


def compare(peer, model: Transformer, params) -> None:
    import torch

    tokens_BT = np.random.default_rng(0).integers(0, V, (2, T))
    with torch.no_grad():
        expected = peer(torch.tensor(tokens_BT)).logits.numpy()
    assert np.abs(expected).max() > 0.5, "the comparison needs logits that say something"
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_allclose(logits_of(model, params, tokens_BT), expected, atol=2e-5)


def randomized(peer):
    """Random weights large enough that every parameter shows in the logits; norms and biases too."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return peer.eval()


def imported(peer, model: Transformer, folder) -> dict:
    """Hugging Face's weights, from the files that it saves, as our parameters."""
    peer.save_pretrained(folder)
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    flat = to_parameters(family_of(model.config).names, parameter_shapes(model.config), weights.__getitem__)
    params: dict = {}
    for path, array in flat.items():
        *above, name = path.split("/")
        functools.reduce(lambda tree, key: tree.setdefault(key, {}), above, params)[name] = array
    return params


def exported(model: Transformer, params, folder):
    """Our parameters written for Hugging Face, and what its own loader makes of them."""
    import transformers

    folder.mkdir()
    family, flat = family_of(model.config), {}
    map_with_path(lambda path, leaf: flat.__setitem__(path, np.asarray(leaf)), params)
    zeros = family.zero_biases(model.config)
    table = tensors(family.names, {path: array.shape for path, array in flat.items()}, zeros)
    arrays = from_parameters(table, flat.__getitem__, zeros)
    write_sharded(str(folder), [(tensor.name, tensor.shape) for tensor in table], arrays, np.dtype("float32"), 100_000)
    settings = config_json(family, model.config, max_positions=T, eot_id=0, dtype="float32")
    (folder / "config.json").write_text(dump(settings))
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return peer.eval()


def check(peer, model: Transformer, tmp_path) -> None:
    """Our model with Hugging Face's weights gives its logits; what we export from there does too."""
    params = imported(peer, model, tmp_path / "theirs")
    compare(peer, model, params)
    again = exported(model, params, tmp_path / "ours")
    assert type(again) is type(peer)
    compare(again, model, params)
    saved = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), saved[name], err_msg=name)


def test_gpt2_gives_hugging_faces_logits(tmp_path):
    import transformers

    peer = randomized(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=N, n_inner=F)
        )
    )
    check(peer, our_model("gpt2", num_kv_heads=N, max_positions=T), tmp_path)


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {"query_pre_attn_scalar": 40, "sliding_window": 5, "tie_word_embeddings": True}
GEMMA_SMALL = {"attention_scale": 40**-0.5, "embedding_scale": D**0.5, "head_dim": 24}
# preset -> (Hugging Face's class, what its config says, what makes our preset small in the same way)
FAMILIES = {
    "llama_7b": ("Llama", {"rms_norm_eps": 1e-5}, {}),
    "llama3_8b": ("Llama", {"rms_norm_eps": 1e-5, "rope_theta": 5e5}, {}),
    "llama3.1_8b": (
        "Llama",
        {"rms_norm_eps": 1e-5, "rope_parameters": LLAMA3 | {"rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16}},
        {"rope_original_length": 16},
    ),
    "llama3.2_1b": (
        "Llama",
        {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_parameters": LLAMA3 | {"rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 16}},
        {"rope_original_length": 16},
    ),
    "mistral_7b": ("Mistral", {"rms_norm_eps": 1e-5, "sliding_window": 5}, {"window": (5,)}),
    "mixtral_8x7b": (
        "Mixtral",
        {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"num_experts": 4},
    ),
    "qwen2_0.5b": ("Qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}, {}),
    "qwen2_7b": ("Qwen2", {"rope_theta": 1e6}, {}),
    "qwen3_0.6b": ("Qwen3", {"rope_theta": 1e6, "head_dim": 24, "tie_word_embeddings": True}, {"head_dim": 24}),
    "qwen3_30b_a3b": (
        "Qwen3Moe",
        {"rope_theta": 1e6, "head_dim": 24, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": F,
         "norm_topk_prob": True},
        {"head_dim": 24, "num_experts": 6, "experts_per_token": 3},
    ),
    "gemma2_2b": ("Gemma2", {**GEMMA, "head_dim": 24}, {**GEMMA_SMALL, "window": (5, None)}),
    "gemma3_1b": (
        "Gemma3",
        {**GEMMA, "head_dim": 24, "num_hidden_layers": 7},
        {**GEMMA_SMALL, "num_layers": 7, "window": (5,) * 5 + (None,)},
    ),
    "gemma3_4b": (
        "Gemma3",
        {**GEMMA, "head_dim": 24, "num_hidden_layers": 7, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}},
        {**GEMMA_SMALL, "num_layers": 7, "window": (5,) * 5 + (None,)},
    ),
}  # fmt: skip


def hugging_face(family: str, settings: dict):
    import transformers

    sizes = {
        "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": N,
        "num_key_value_heads": K, "max_position_embeddings": T, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }  # fmt: skip
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))(**sizes | settings)
    return randomized(getattr(transformers, f"{family}ForCausalLM")(config))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_preset_gives_hugging_faces_logits(name, tmp_path):
    family, settings, small = FAMILIES[name]
    check(hugging_face(family, settings), our_model(name, **small), tmp_path)


# Features that a family's own preset does not show: preset -> what is added to it. Weights are ours.
VARIANTS = {
    "llama with biases": ("llama_7b", {"bias": ("query", "out", "down"), "activation": "geglu"}),
    "gpt2 without biases": ("gpt2", {"num_kv_heads": N, "max_positions": T, "bias": ("norm",), "activation": "relu2"}),
    "gpt2 untied": ("gpt2", {"num_kv_heads": N, "max_positions": T, "bias": (), "tie_embeddings": False}),
    "qwen2 with windows": ("qwen2_7b", {"window": (5, None)}),
    "qwen3 with windows and biases": ("qwen3_0.6b", {"head_dim": 24, "window": (5, None, None), "bias": ("key",)}),
    "gemma2 without caps": ("gemma2_2b", {"embedding_scale": D**0.5, "head_dim": 24, "attention_scale": None, "window": (None,), "attention_softcap": None, "logit_softcap": None, "tie_embeddings": False}),
    "gemma3 without windows": ("gemma3_1b", {"embedding_scale": D**0.5, "head_dim": 24, "attention_scale": 0.125, "window": (None,), "rope_base": (1e5,)}),
    "mixtral with a window": ("mixtral_8x7b", {"num_experts": 4, "window": (5,), "tie_embeddings": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_exported_gives_our_logits(name, tmp_path):
    preset_name, small = VARIANTS[name]
    model = our_model(preset_name, **small)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * draw.standard_normal(leaf.shape, np.float32), params)
    compare(exported(model, params, tmp_path / "ours"), model, params)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_context_extension_gives_hugging_faces_logits(scaling, tmp_path):
    rope = {"rope_type": scaling, "rope_theta": 1e4, "factor": 4.0}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = 8
    peer = hugging_face("Llama", {"rms_norm_eps": 1e-5, "rope_parameters": rope})
    ours = {"rope_scaling": scaling, "rope_factor": (4.0,), "rope_original_length": 8}
    model = our_model("llama_7b", **ours)
    check(peer, model, tmp_path)
    unscaled = our_model("llama_7b")
    tokens_BT = np.random.default_rng(0).integers(0, V, (2, T))
    params = jax.tree.map(jnp.asarray, imported(peer, model, tmp_path / "again"))
    assert np.abs(logits_of(model, params, tokens_BT) - logits_of(unscaled, params, tokens_BT)).max() > 1e-3
