"""Sizes of activations over width: what is recorded, which slopes are judged, and that a wrong parametrization fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import apply_overrides, default
from lm.errors import ConfigError
from lm.model import Transformer
from lm.report.coord_check import draw_growth
from lm.resolve import resolve
from lm.sweep.coord_check import Growth, activations, measure, parametrizations, widened

V, T = 128, 16
WIDTHS = (32, 64, 128)


def config_of(**overrides: str):
    config = default()
    small = {
        "model.num_layers": "2",
        "model.d_model": "32",
        "model.num_heads": "4",
        "model.num_kv_heads": "2",
        "model.d_ff": "88",
        "model.vocab_size": str(V),
        "model.tie_embeddings": "False",
        "model.embedding_std": "1.0",
        "model.qk_norm": "True",
        "data.sequence_length": str(T),
        "optimizer.learning_rate": "0.01",
        "optimizer.weight_decay": "0.0",
    }
    apply_overrides(config, list((small | overrides).items()))
    return resolve(config)


def batch_of(seed: int, rows: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    tokens = random.zipf(1.3, (rows, T + 1)).clip(max=V) - 1
    of = lambda a: np.broadcast_to(np.asarray(a, np.int32), (rows, T)).copy()  # noqa: E731
    return {
        "inputs_BT": of(tokens[:, :-1]),
        "targets_BT": of(tokens[:, 1:]),
        "weights_BT": np.ones((rows, T), np.float32),
        "segment_ids_BT": of(1),
        "positions_BT": of(np.arange(T)),
        "target_bytes_BT": of(1),
    }


def recorded(config, batch=None):
    batch = batch or batch_of(0)
    model = Transformer(config.model, config.precision)
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def both(params):
        hidden = model.hidden(params, batch["inputs_BT"], batch["positions_BT"], batch["segment_ids_BT"]).x_BTD
        zeros = jax.tree.map(jnp.zeros_like, params)
        return activations(model, params, zeros, batch), hidden, model.logits(params, hidden)

    return both(params)


@pytest.mark.slow
def test_what_is_recorded_is_what_the_model_computes():
    found, hidden_BTD, logits_BTV = recorded(config_of())
    parts = ("attention_logits", "attention", "mlp", "residual")
    layers = [f"layers/{layer}/{part}" for layer in range(2) for part in parts]
    assert set(found) == {"embedding", *layers, "final_hidden", "logits", "logits_learned"}
    np.testing.assert_allclose(found["final_hidden"], hidden_BTD, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits_BTV, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["logits_learned"], logits_BTV, rtol=1e-4, atol=1e-5)  # since zeros
    attended = found["layers/1/residual"] - found["layers/0/residual"]
    np.testing.assert_allclose(attended, found["layers/1/attention"] + found["layers/1/mlp"], rtol=1e-3, atol=1e-4)
    scores_BNTS = found["layers/0/attention_logits"]
    assert (
        scores_BNTS.shape == (2, 4, T, T) and not np.triu(scores_BNTS, 1).any() and np.abs(scores_BNTS).max() <= 8**0.5
    )


@pytest.mark.slow
def test_layers_of_a_pattern_and_experts_are_recorded():
    found, hidden_BTD, _ = recorded(
        config_of(
            **{"model.num_layers": "3", "model.window": "(4, None)", "model.num_experts": "4", "model.remat": "full"}
        )
    )
    assert [name for name in found if name.endswith("residual")] == [f"layers/{i}/residual" for i in range(3)]
    assert {"layers/2/router", "layers/2/router_learned", "layers/2/experts"} <= set(found)
    np.testing.assert_allclose(found["final_hidden"], hidden_BTD, rtol=1e-4, atol=1e-5)


def test_a_wider_model_has_more_heads_of_the_same_width():
    model = widened(config_of(), 128).model
    assert (model.d_model, model.num_heads, model.num_kv_heads, model.head_dim, model.d_ff) == (128, 16, 8, 8, 352)
    with pytest.raises(ConfigError, match="num_kv_heads=2 at d_model=32 would become 2.5"):
        widened(config_of(), 40)


def test_the_two_parametrizations_of_a_config():
    plain = parametrizations(config_of(), 32)
    assert (plain["muP"].model.mup_base_width, plain["muP"].model.initializer) == (32, "mup")
    assert (plain["standard"].model.mup_base_width, plain["standard"].model.initializer) == (None, "gpt2")
    configured = parametrizations(config_of(**{"model.mup_base_width": "64", "model.initializer": "spectral"}), 32)
    assert (configured["muP"].model.mup_base_width, configured["muP"].model.initializer) == (64, "spectral")
    assert (configured["standard"].model.mup_base_width, configured["standard"].model.initializer) == (None, "fan_in")
    own = parametrizations(config_of(**{"model.mup_base_width": "64", "model.initializer": "zero_out"}), 32)
    assert own["muP"].model.initializer == own["standard"].model.initializer == "zero_out"


def growth_of(**slopes: float) -> Growth:
    sizes = {name: np.array(WIDTHS)[:, None, None] ** slope * np.ones((3, 2, 2)) for name, slope in slopes.items()}
    return Growth(WIDTHS, sizes, {name: 3 * size for name, size in sizes.items()})


def test_slopes_are_exact_and_the_worst_comes_first():
    growth = growth_of(steady=0.0, rises=0.5, falls=-1.0, little=0.09)
    assert growth.slope("rms", "rises") == pytest.approx(0.5)
    assert list(growth.wrong()) == [("rms", "falls"), ("change", "falls"), ("rms", "rises"), ("change", "rises")]


def test_the_logits_of_a_random_readout_are_not_judged_but_what_it_has_learned_is():
    growth = growth_of(logits=-0.5, logits_learned=-0.5)
    assert set(growth.wrong()) == {("rms", "logits_learned"), ("change", "logits_learned")}


def test_a_size_that_is_not_finite_or_zero_at_one_width_fails_and_one_that_is_zero_everywhere_is_left_out():
    growth = growth_of(nan=0.0, some=0.0, never=0.0)
    growth.rms["nan"][1, 0, -1] = np.nan
    growth.rms["some"][2, :, -1] = 0
    growth.rms["never"][:] = 0
    assert list(growth.wrong()) == [("rms", "nan"), ("rms", "some")]
    assert ("rms", "never") not in growth.judged()


def measured(config) -> Growth:
    return measure(config, WIDTHS, [batch_of(seed) for seed in range(4)], steps=3)


def steep(growth: Growth) -> dict[tuple[str, str], float]:
    """The judged slopes that are off by more than what three widths from 32 on leave of noise."""
    return {pair: slope for pair, slope in growth.judged().items() if not abs(slope) < 0.15}


ONE_LAYER = {"model.num_layers": "1", "model.num_kv_heads": "4", "model.initializer": "fan_in"}


@pytest.mark.slow
def test_adamw_under_mup_keeps_its_activations_and_standard_parametrization_does_not(tmp_path):
    growths = {name: measured(own) for name, own in parametrizations(config_of(**ONE_LAYER), WIDTHS[0]).items()}
    assert not steep(growths["muP"])
    wrong = growths["standard"].wrong()
    assert wrong["change", "logits_learned"] > 0.3 and wrong["change", "layers/0/mlp"] > 0.3
    path = tmp_path / "growth.png"
    draw_growth(growths, str(path), title="t")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_wrong_rate_of_the_kernels_is_found(monkeypatch):
    monkeypatch.setattr("lm.optim.build.direction_factor", lambda config, path: 1.0)
    wrong = measured(parametrizations(config_of(**ONE_LAYER), WIDTHS[0])["muP"]).wrong()
    assert wrong["change", "layers/0/mlp"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["adam_rms", "spectral"])
def test_muon_under_mup_keeps_its_activations(scale):
    muon = {"optimizer.name": "muon", "optimizer.muon_scale": scale}
    assert not steep(measured(parametrizations(config_of(**ONE_LAYER, **muon), WIDTHS[0])["muP"]))


@pytest.mark.slow
def test_a_router_under_mup_keeps_what_it_has_learned():
    experts = {"model.num_experts": "4", "model.experts_per_token": "2"}
    growth = measured(parametrizations(config_of(**ONE_LAYER, **experts), WIDTHS[0])["muP"])
    assert abs(growth.slope("rms", "layers/0/router_learned")) < 0.2
    assert ("rms", "layers/0/router") not in growth.judged()
