"""Our GPT-2 and Llama give the logits of Hugging Face's from the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import apply_overrides, default, resolve
from lm.model import Transformer

pytestmark = pytest.mark.peer

L, D, N, K, V, F, T = 3, 64, 4, 2, 128, 96, 24
H = D // N


def our_model(**overrides: str) -> Transformer:
    config = default()
    sizes = {"num_layers": L, "d_model": D, "num_heads": N, "vocab_size": V}
    apply_overrides(config, [(f"model.{name}", str(value)) for name, value in (sizes | overrides).items()])
    apply_overrides(config, [("data.sequence_length", str(T))])
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
    model = our_model(
        norm="layernorm", norm_epsilon="1e-5", bias="True", activation="gelu", positions="learned", d_ff=F
    )
    compare(peer, model, params)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_llama_shapes_give_hugging_faces_logits(family):
    """Llama with an untied head; Qwen3 adds QK-norm and a head width free of D/N; Mistral a sliding window."""
    import transformers

    head_dim = 24 if family == "qwen3" else H
    sizes = {
        "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": N,
        "num_key_value_heads": K, "head_dim": head_dim, "rms_norm_eps": 1e-6, "max_position_embeddings": T,
        "tie_word_embeddings": False, "attn_implementation": "eager",
    }  # fmt: skip
    if family == "mistral":
        sizes["sliding_window"] = 5
    name = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral"}[family]
    config = getattr(transformers, f"{name}Config")(**sizes)
    peer = randomized(getattr(transformers, f"{name}ForCausalLM")(config))
    w = {key: tensor.detach().numpy() for key, tensor in peer.state_dict().items()}

    def layer(i):
        p = f"model.layers.{i}."
        kernel = lambda path: w[f"{p}{path}.weight"].T  # noqa: E731  Linear: [out, in]
        attention = {
            ours: {"kernel": kernel(f"self_attn.{theirs}_proj").reshape(D, heads, head_dim)}
            for ours, theirs, heads in (("query", "q", N), ("key", "k", K), ("value", "v", K))
        }
        attention["out"] = {"kernel": kernel("self_attn.o_proj").reshape(N, head_dim, D)}
        if family == "qwen3":
            attention["query_norm"] = {"scale": w[p + "self_attn.q_norm.weight"]}
            attention["key_norm"] = {"scale": w[p + "self_attn.k_norm.weight"]}
        mlp = {part: {"kernel": kernel(f"mlp.{part}_proj")} for part in ("gate", "up", "down")}
        return {
            "attention": attention,
            "mlp": mlp,
            "attention_norm": {"scale": w[p + "input_layernorm.weight"]},
            "mlp_norm": {"scale": w[p + "post_attention_layernorm.weight"]},
        }

    params = {
        "embed": {"tokens": {"embedding": w["model.embed_tokens.weight"]}},
        "layers": stack([layer(i) for i in range(L)]),
        "final_norm": {"scale": w["model.norm.weight"]},
        "head": {"kernel": w["lm_head.weight"].T},
    }
    overrides = {"num_kv_heads": K, "head_dim": head_dim, "d_ff": F, "tie_embeddings": "False"}
    if family == "qwen3":
        overrides["qk_norm"] = "True"
    if family == "mistral":
        overrides["window"] = "(5,)"
    compare(peer, our_model(**{name: str(value) for name, value in overrides.items()}), params)
