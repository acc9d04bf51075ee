"""Every parameter's standard deviation under every scheme, against a table written by hand."""

import math

import jax
import numpy as np
import pytest

from lm.config import BIASES, INITIALIZERS
from lm.model.initializers import fans
from lm.tree import map_with_path
from tests.model.common import small_model

K, H, E, V, P = 4, 32, 48, 512, 256
BASE, EMBEDDING = 96, 0.03


def fan_table(D: int, F: int, N: int) -> dict[str, tuple[int, int]]:
    """(fan-in, fan-out) of one layer's, one expert's matmul; N * H is not D, so that a wrong axis shows."""
    return {
        "layers/attention/query/kernel": (D, N * H),
        "layers/attention/key/kernel": (D, K * H),
        "layers/attention/value/kernel": (D, K * H),
        "layers/attention/out/kernel": (N * H, D),
        "layers/mlp/up/kernel": (D, F),
        "layers/mlp/gate/kernel": (D, F),
        "layers/mlp/down/kernel": (F, D),
        "layers/experts/router/kernel": (D, E),
        "layers/experts/up/kernel": (D, F),
        "layers/experts/gate/kernel": (D, F),
        "layers/experts/down/kernel": (F, D),
        "head/kernel": (D, V),
    }


def expected_std(scheme: str, path: str, fan_in: int, fan_out: int, layers: int) -> float:
    residual = path.endswith(("out/kernel", "down/kernel"))
    depth = math.sqrt(2 * layers) if residual else 1
    kaiming_gain = math.sqrt(2) if path.endswith("down/kernel") else 1
    readouts = {"head/kernel": BASE**-0.5, "layers/experts/router/kernel": BASE**0.5 / fan_in}
    return {
        "normal": EMBEDDING,
        "gpt2": EMBEDDING / depth,
        "fan_in": fan_in**-0.5 / depth,
        "zero_out": 0 if residual or path == "head/kernel" else fan_in**-0.5,
        "xavier": (2 / (fan_in + fan_out)) ** 0.5,
        "kaiming_in": kaiming_gain * fan_in**-0.5,
        "kaiming_out": kaiming_gain * fan_out**-0.5,
        "mup": readouts.get(path, fan_in**-0.5),
        "spectral": fan_in**-0.5 * min(1, (fan_out / fan_in) ** 0.5),
    }[scheme]


def initialized(scheme: str, D: int, L: int, mixture: bool, **overrides):
    sizes = {"d_model": D, "d_ff": 2 * D, "num_heads": 8, "num_kv_heads": K, "head_dim": H, "num_layers": L}
    fields = {
        **sizes, "vocab_size": V, "max_positions": P, "positions": "learned", "initializer": scheme,
        "embedding_std": EMBEDDING, "mup_base_width": BASE, "tie_embeddings": False, "norm": "layernorm",
        "bias": BIASES, "qk_norm": True, "value_embeddings": True, "num_experts": E if mixture else None, **overrides,
    }  # fmt: skip
    model = small_model(**{f"model.{name}": str(value) for name, value in fields.items()})
    return jax.jit(model.init)(jax.random.key(0))


def check(scheme: str, D: int, L: int, mixture: bool, **overrides) -> None:
    table, seen = fan_table(D, 2 * D, 8), set()

    def one(path, leaf):
        seen.add(path)
        values = np.asarray(leaf, np.float64)
        if path.endswith("embedding"):
            wanted = EMBEDDING
        else:
            wanted = expected_std(scheme, path, *table[path], L) if path.endswith("kernel") else 0
        assert values.std() == pytest.approx(wanted, rel=0.02, abs=1e-12), path
        assert values.mean() == pytest.approx(float(path.endswith("scale")), abs=5 * wanted / values.size**0.5), path
        if path.startswith("layers/") and wanted:
            assert not np.array_equal(values[0], values[1]), f"layers of {path} must not start equal"
        if "experts" in path and "router" not in path and wanted:
            assert not np.array_equal(values[0, 0], values[0, 1]), f"experts of {path} must not start equal"

    map_with_path(one, initialized(scheme, D, L, mixture, **overrides))
    kind = "experts" if mixture else "mlp"
    absent = {path for path in table if "/mlp/" in path or "/experts/" in path if f"/{kind}/" not in path}
    assert set(table) - absent < seen


# Width and depth enter the table each alone: every scheme at both of each is enough.
CASES = [(scheme, *size) for scheme in INITIALIZERS for size in ((128, 5), (192, 2))]


@pytest.mark.parametrize("scheme", ["gpt2", "mup"])
def test_standard_deviation_of_every_parameter(scheme):
    check(scheme, 128, 2, mixture=False)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width", "depth"), CASES)
def test_standard_deviation_at_two_widths_and_depths(scheme, width, depth):
    check(scheme, width, depth, mixture=False)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", INITIALIZERS)
def test_standard_deviation_of_experts(scheme):
    check(scheme, 128, 2, mixture=True)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["truncated_normal", "uniform"])
def test_the_distribution_changes_the_shape_and_not_the_deviation(distribution):
    check("xavier", 128, 2, mixture=False, init_distribution=distribution)
    up = np.asarray(
        initialized("normal", 128, 2, False, init_distribution=distribution)["layers"]["mlp"]["up"]["kernel"]
    )
    furthest = {"truncated_normal": 2 / 0.8796256610342398, "uniform": 3**0.5}[distribution]
    assert 0.99 * furthest < np.abs(up).max() / EMBEDDING <= furthest * 1.0001


def test_a_gain_of_ones_own():
    params = initialized("kaiming_in", 128, 2, False, init_gain=3.0)
    assert np.asarray(params["layers"]["mlp"]["up"]["kernel"]).std() == pytest.approx(3 / 128**0.5, rel=0.02)
    assert np.asarray(params["layers"]["mlp"]["down"]["kernel"]).std() == pytest.approx(3 / 256**0.5, rel=0.02)


def test_fans_come_from_the_letters_whatever_is_stacked():
    size = {"L": 3, "E": 5, "R": 5, "D": 128, "F": 64, "N": 8, "K": 2, "H": 32, "V": 1000}
    expected = {"DNH": (128, 256), "LDKH": (128, 64), "LNHD": (256, 128), "LEDF": (128, 64), "LDR": (128, 5)}
    assert {dims: fans(dims, size) for dims in expected} == expected
