"""Every parameter's standard deviation, layer by layer, against a table written by hand."""

import math

import jax
import numpy as np
import pytest

from lm.model.initializers import fan_in
from lm.tree import map_with_path
from tests.model.common import small_model

D, F, N, K, H, L = 128, 512, 8, 4, 32, 3  # N * H is not D, so that a fan from the wrong axis shows

FAN_IN = {
    "layers/attention/query/kernel": D,
    "layers/attention/key/kernel": D,
    "layers/attention/value/kernel": D,
    "layers/attention/out/kernel": N * H,
    "layers/mlp/up/kernel": D,
    "layers/mlp/gate/kernel": D,
    "layers/mlp/down/kernel": F,
    "head/kernel": D,
}
RESIDUAL = {"layers/attention/out/kernel", "layers/mlp/down/kernel"}


def expected_std(initializer: str, path: str) -> float:
    if path.endswith("embedding"):
        return 0.03
    if not path.endswith("kernel"):
        return 0.0
    if initializer == "zero_out" and (path in RESIDUAL or path == "head/kernel"):
        return 0.0
    std = 0.03 if initializer == "gpt2" else 1 / math.sqrt(FAN_IN[path])
    return std / math.sqrt(2 * L) if path in RESIDUAL else std


@pytest.mark.parametrize("initializer", ["gpt2", "fan_in", "zero_out"])
def test_standard_deviation_of_every_parameter_in_every_layer(initializer):
    sizes = {"d_model": D, "d_ff": F, "num_heads": N, "num_kv_heads": K, "head_dim": H, "num_layers": L}
    overrides = {f"model.{name}": str(size) for name, size in sizes.items()}
    model = small_model(
        **overrides,
        **{
            "model.initializer": initializer,
            "model.embedding_std": "0.03",
            "model.tie_embeddings": "False",
            "model.positions": "learned",
            "model.max_positions": "256",
            "model.norm": "layernorm",
            "model.bias": "True",
            "model.qk_norm": "True",
            "model.vocab_size": "512",
            "model.value_embeddings": "True",
        },
    )
    params = jax.jit(model.init)(jax.random.key(0))
    seen = set()

    def check(path, leaf):
        seen.add(path)
        for layer in leaf if path.startswith("layers/") else [leaf]:
            value = np.asarray(layer, np.float64)
            assert value.std() == pytest.approx(expected_std(initializer, path), rel=0.04), path
            assert abs(value.mean() - path.endswith("scale")) < 0.004, path

    map_with_path(check, params)
    assert set(FAN_IN) < seen
    kernels = params["layers"]["mlp"]["up"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1]), "layers must not start equal"


def test_fans_come_from_the_matmul():
    sizes = {"D": 128, "N": 8, "H": 32}
    assert fan_in("BTD,DNH->BTNH", sizes) == 128
    assert fan_in("BTNH,NHD->BTD", sizes) == 256
