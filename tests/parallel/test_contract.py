"""What a compiled step sends, how often and along which axis: nothing that the sharding does not call for.

The formulas, and a run of all architectures on all meshes, are in `tests/parallel/contract.py`.
"""

import jax
import pytest

from lm.presets import PRESETS
from tests.parallel.contract import FAMILIES, MESHES, check, compiled, deviations, shrunk

# Every architecture where parameters, activations and layers' sums all travel; the other meshes with what they may
# stumble over: a mixture's sums, a norm behind a sublayer, windows.
CASES = [(family, "fsdp x tensor") for family in FAMILIES if family not in ("llama3.2", "qwen3_moe")]
CASES += [("llama", name) for name in ("zero1", "zero2", "zero3", "hsdp", "tensor", "stage x data", "context")]
CASES += [("mixtral", name) for name in ("stage x data", "expert", "expert capacity", "expert x fsdp x tensor")]
CASES += [("gemma2", name) for name in ("zero3", "stage x tensor")]


def test_data_parallelism_reduces_gradients_once_a_step():
    assert check("llama", "data") == []


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mesh"), CASES)
def test_a_step_sends_what_its_architecture_and_mesh_call_for(family, mesh):
    assert check(family, mesh) == []


def test_every_preset_is_made_of_what_the_checked_architectures_are_made_of():
    numbers = ("rope", "epsilon", "scale")  # change no exchange
    checked = {field for family, _ in CASES for field in shrunk(family).items()}
    for name in PRESETS:
        fields = {(key, value) for key, value in shrunk(name).items() if not any(part in key for part in numbers)}
        assert fields <= checked, (name, fields - checked)


@pytest.mark.slow
def test_a_sum_that_is_not_scattered_is_found(monkeypatch):
    def whole_sum(tensor, y_BTD, length):
        y_BTD = jax.lax.psum(y_BTD, "tensor")
        return jax.lax.dynamic_slice_in_dim(y_BTD, jax.lax.axis_index("tensor") * length, length, axis=1)

    monkeypatch.setattr("lm.parallel.local._leave", whole_sum)
    lines = check("llama", "tensor")
    for found in ("reduce-scatter over tensor: ", "all-reduce over tensor: ", "all-reduce over tensor, of gradients: "):
        assert any(line.startswith(found) for line in lines), (found, lines)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "none", "mlp_up"])
def test_zero_3_keeps_no_layers_gathered_parameters_and_gathers_them_as_often(remat):
    """A layer's are there, and never those of all layers, `[L, D, F]`."""
    text, config, mesh = compiled(shrunk("llama") | {"model.remat": remat, "model.d_ff": "208"}, MESHES["zero3"])
    L = config.model.num_layers
    assert "f32[64,208]" in text
    assert f"f32[{L},64,208]" not in text and f"f32[{L},8,208]" in text
    assert deviations(config, mesh, text) == []
