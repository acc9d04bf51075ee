"""Each family's preset, made small, gives the logits of Hugging Face's model from the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import default
from lm.model import Transformer
from lm.presets import preset
from lm.resolve import resolve

pytestmark = pytest.mark.peer

L, D, N, K, V, F, T = 3, 64, 4, 2, 128, 96, 24
H = D // N


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


def stack(layers):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def test_gpt2_gives_hugging_faces_logits():
    import transformers

    peer = randomized(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=N, n_inner=F)
        )
    )
    w = {name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}

    def layer(i):
        p = f"transformer.h.{i}."
        kernels = np.split(w[p + "attn.c_attn.weight"], 3, -1)  # Conv1D: [in, out]
        biases = np.split(w[p + "attn.c_attn.bias"], 3)
        attention = {
            name: {"kernel": kernel.reshape(D, N, H), "bias": bias.reshape(N, H)}
            for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        attention["out"] = {
            "kernel": w[p + "attn.c_proj.weight"].reshape(N, H, D),
            "bias": w[p + "attn.c_proj.bias"],
        }
        mlp = {
            ours: {"kernel": w[f"{p}mlp.{theirs}.weight"], "bias": w[f"{p}mlp.{theirs}.bias"]}
            for ours, theirs in (("up", "c_fc"), ("down", "c_proj"))
        }
        norms = {
            ours: {"scale": w[f"{p}{theirs}.weight"], "bias": w[f"{p}{theirs}.bias"]}
            for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2"))
        }
        return {"attention": attention, "mlp": mlp, **norms}

    params = {
        "embed": {
            "tokens": {"embedding": w["transformer.wte.weight"]},
            "positions": {"embedding": w["transformer.wpe.weight"]},
        },
        "layers": stack([layer(i) for i in range(L)]),
        "final_norm": {"scale": w["transformer.ln_f.weight"], "bias": w["transformer.ln_f.bias"]},
    }
    compare(peer, our_model("gpt2", num_kv_heads=N, max_positions=T), params)


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


def converted(peer, layers: int, head_dim: int, tied: bool):
    """Hugging Face's Llama-like weights as our parameters."""
    w = {key: tensor.detach().numpy() for key, tensor in peer.state_dict().items()}
    sandwich = "model.layers.0.pre_feedforward_layernorm.weight" in w

    def layer(i):
        p = f"model.layers.{i}."
        kernel = lambda path: w[f"{p}{path}.weight"].T  # noqa: E731  Linear: [out, in]
        attention = {"out": {"kernel": kernel("self_attn.o_proj").reshape(N, head_dim, D)}}
        for ours, theirs, heads in (("query", "q", N), ("key", "k", K), ("value", "v", K)):
            attention[ours] = {"kernel": kernel(f"self_attn.{theirs}_proj").reshape(D, heads, head_dim)}
            if f"{p}self_attn.{theirs}_proj.bias" in w:
                attention[ours]["bias"] = w[f"{p}self_attn.{theirs}_proj.bias"].reshape(heads, head_dim)
            if f"{p}self_attn.{theirs}_norm.weight" in w:
                attention[f"{ours}_norm"] = {"scale": w[f"{p}self_attn.{theirs}_norm.weight"]}
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        if sandwich:
            norms["attention_post_norm"] = norms["mlp_norm"]
            norms |= {"mlp_norm": "pre_feedforward_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
        out = {"attention": attention} | {ours: {"scale": w[f"{p}{theirs}.weight"]} for ours, theirs in norms.items()}
        if f"{p}mlp.experts.down_proj" in w:
            gate, up = np.split(w[f"{p}mlp.experts.gate_up_proj"], 2, axis=1)  # [E, F, D] each
            down = w[f"{p}mlp.experts.down_proj"]
            kernels = {"gate": gate, "up": up, "down": down}
            out["experts"] = {name: {"kernel": array.transpose(0, 2, 1)} for name, array in kernels.items()}
            out["experts"]["router"] = {"kernel": kernel("mlp.gate")}
        else:
            out["mlp"] = {part: {"kernel": kernel(f"mlp.{part}_proj")} for part in ("gate", "up", "down")}
        return out

    params = {
        "embed": {"tokens": {"embedding": w["model.embed_tokens.weight"]}},
        "layers": stack([layer(i) for i in range(layers)]),
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    return params if tied else params | {"head": {"kernel": w["lm_head.weight"].T}}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_preset_gives_hugging_faces_logits(name):
    family, settings, small = FAMILIES[name]
    peer, model = hugging_face(family, settings), our_model(name, **small)
    compare(peer, model, converted(peer, model.config.num_layers, model.config.head_dim, model.config.tie_embeddings))


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_context_extension_gives_hugging_faces_logits(scaling):
    rope = {"rope_type": scaling, "rope_theta": 1e4, "factor": 4.0}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = 8
    peer = hugging_face("Llama", {"rms_norm_eps": 1e-5, "rope_parameters": rope})
    ours = {"rope_scaling": scaling, "rope_factor": (4.0,), "rope_original_length": 8}
    model = our_model("llama_7b", **ours)
    compare(peer, model, converted(peer, L, H, tied=False))
    unscaled = our_model("llama_7b")
    tokens_BT = np.random.default_rng(0).integers(0, V, (2, T))
    params = jax.tree.map(jnp.asarray, converted(peer, L, H, tied=False))
    assert np.abs(logits_of(model, params, tokens_BT) - logits_of(unscaled, params, tokens_BT)).max() > 1e-3
