"""Memory from first principles: state by the tables, activations by the mesh, and what each knob saves."""

import jax
import pytest

from lm.model.flops import parameter_counts
from lm.parallel.mesh import make_mesh
from lm.plan.memory import memory
from lm.plan.search import mesh_of
from lm.train.aot import abstract_inputs
from lm.train.step import build_step
from tests.parallel.test_state_bytes import held
from tests.plan.common import config_of
from tests.train.common import small_config


def needs(name: str = "llama_1b", devices: int = 16, **overrides: str):
    config = config_of(name, devices, **overrides)
    return memory(config, mesh_of(config))


@pytest.mark.parametrize("zero", "0123")
def test_what_is_there_between_steps_is_what_the_step_holds_on_a_mesh_of_three_axes(zero):
    overrides = {"parallel.data": "2", "parallel.tensor": "2", "parallel.zero": zero, "optimizer.ema_decay": "0.9"}
    config = small_config(devices=8, fsdp=2, **overrides)
    mesh = make_mesh(config.parallel, jax.devices()[:8])
    built, found = build_step(config, mesh), memory(config, dict(mesh.shape))
    counters = 8  # bytes: the step's and the optimizer's
    assert found.parameters == held(built.state.params)
    assert found.optimizer == pytest.approx(held(built.state.opt_state), abs=counters)
    assert found.average == held(built.state.extra["ema"])
    assert found.batch == held(abstract_inputs(config, mesh)[0])


def test_zero_divides_what_its_stage_says_by_the_devices():
    count = parameter_counts(config_of().model)["total"]
    by_stage = [needs(**{"parallel.zero": str(zero)}) for zero in range(4)]
    assert [round(m.parameters / count, 1) for m in by_stage] == [4.0, 4.0, 4.0, 0.3]
    assert [round(m.optimizer / count, 1) for m in by_stage] == [8.0, 0.5, 0.5, 0.5]


def test_stage_2_accumulates_shards_where_stage_1_accumulates_whole_gradients():
    many = {"optimizer.accumulation_steps": "2"}
    count = parameter_counts(config_of().model)["total"]
    first, second = (needs(**many, **{"parallel.zero": zero}).gradients for zero in "12")
    assert first - second == pytest.approx(4 * count * (1 - 1 / 16), rel=0.001)


def test_micro_batches_and_remat_shrink_activations():
    whole = needs().activations
    assert needs(**{"optimizer.accumulation_steps": "2"}).activations == whole // 2
    full = needs(**{"model.remat": "full"})
    assert full.activations == 16 * 2 * 2048 * 2048 * 2, "L B T D in bf16"
    offloaded = needs(**{"model.remat": "offload:block_input"})
    assert (offloaded.activations, offloaded.host) == (0, full.activations)


def test_tensor_and_context_parallelism_divide_activations():
    whole = needs(**{"model.remat": "none", "parallel.fsdp": "4", "parallel.data": "4", "data.batch_size": "64"})
    for axis in ("tensor", "context"):
        mesh = {"parallel.fsdp": "4", "parallel.data": "1", f"parallel.{axis}": "4", "data.batch_size": "16"}
        assert needs(**{"model.remat": "none"} | mesh).activations == pytest.approx(whole.activations / 4, rel=0.01)


def test_a_pipelines_stage_has_its_layers_and_the_activations_of_all_its_micro_batches():
    mesh = {"parallel.fsdp": "4", "parallel.stage": "4", "optimizer.accumulation_steps": "8", "data.batch_size": "32"}
    one = needs(devices=4, **{"model.remat": "full", "data.batch_size": "4"})
    found = needs(**mesh, **{"model.remat": "full"})
    assert found.activations == pytest.approx(one.activations / 4 * (8 + 3), rel=0.001)


def test_an_offloaded_optimizer_is_on_the_host():
    here, there = needs(), needs(**{"parallel.offload_optimizer": "true"})
    assert (there.optimizer, there.host) == (0, here.optimizer)


def test_a_mixtures_tokens_stand_once_for_each_of_their_experts():
    two, four = (needs("mixtral_8x7b", 64, **{"model.experts_per_token": k}).activations for k in ("2", "4"))
    layers, tokens, config = 32, 2 * 2048, config_of("mixtral_8x7b", 64).model
    assert four - two == layers * 2 * tokens * 2 * (3 * config.d_ff + 2 * config.d_model)
