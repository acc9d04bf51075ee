"""What a compiled step sends, how often and along which axis: nothing that the sharding does not call for.

`lm.plan.collectives` counts a collective in a loop as often as the loop turns. The model has L layers of 7 kernels and
a tied embedding, remat `full`, and A micro-batches.
"""

import math

import jax
import pytest
from jax.sharding import Mesh

from lm.axes import MESH_AXES
from lm.parallel.mesh import make_mesh
from lm.plan.collectives import collectives, summary
from lm.train.aot import abstract_inputs
from lm.train.step import build_step
from tests.train.common import small_config

L, A, KERNELS = 4, 2, 7
MATRICES = KERNELS + 1  # stacked over the layers, and the embedding


def compiled(overrides=None, **sizes: str) -> tuple[str, Mesh]:
    """Return the step's program, on as many devices as the mesh has."""
    devices = math.prod(int(sizes.get(axis, 1)) for axis in MESH_AXES)
    shape = {
        "model.num_layers": str(L),
        "model.num_kv_heads": "2",
        "model.remat": "full",
        "data.sequence_length": "16",
        "optimizer.accumulation_steps": str(A),
        "parallel.data": "1",
    }
    parallel = {f"parallel.{name}": value for name, value in sizes.items() if name != "fsdp"}
    config = small_config(devices, int(sizes.get("fsdp", 1)), **(shape | parallel | (overrides or {})))
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    built = build_step(config, mesh)
    return built.step.lower(built.state, *abstract_inputs(config, mesh)).compile().as_text(), mesh


def executions(overrides=None, **sizes: str) -> dict[tuple[str, tuple[str, ...]], int]:
    """Return (kind, axes) -> how often it runs in one step."""
    return {key: runs for key, (_, runs, _) in summary(collectives(*compiled(overrides, **sizes))).items()}


def test_data_parallelism_reduces_once_a_step():
    sent = executions(data="8")
    assert set(sent) == {("all-reduce", ("data",))}
    assert sent["all-reduce", ("data",)] <= 3, "gradients, the objective's sums, the token count"


@pytest.mark.slow
def test_zero_1_scatters_gradients_once_a_step_and_gathers_the_new_parameters():
    sent = executions(fsdp="8", zero="1")
    assert sent.pop(("all-reduce", ("fsdp",))) <= 4, "vectors and sums"
    assert sent == {("reduce-scatter", ("fsdp",)): MATRICES, ("all-gather", ("fsdp",)): MATRICES}


@pytest.mark.slow
def test_zero_2_scatters_every_micro_batch():
    sent = executions(fsdp="8", zero="2")
    assert sent.pop(("all-reduce", ("fsdp",))) <= 4
    assert sent == {("reduce-scatter", ("fsdp",)): A * MATRICES, ("all-gather", ("fsdp",)): MATRICES}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "none"])
def test_zero_3_gathers_each_layer_forward_and_backward_and_scatters_its_gradient(remat):
    sent = executions({"model.remat": remat}, fsdp="8")
    assert sent.pop(("all-reduce", ("fsdp",))) <= 4
    assert sent.pop(("reduce-scatter", ("fsdp",))) == A * (KERNELS * L + 1)
    gathers = sent.pop(("all-gather", ("fsdp",)))
    # 2 L + 1 times a layer's kernels; a compiler may find one or two of them at hand.
    assert A * (KERNELS * (2 * L - 1) + 1) <= gathers <= A * (KERNELS * (2 * L + 1) + 1)
    assert not sent


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "none", "mlp_up"])
def test_zero_3_keeps_no_layers_gathered_parameters(remat):
    """A layer's are there, and never those of all layers, `[L, D, F]`."""
    text, _ = compiled({"model.remat": remat, "model.d_ff": "208"}, fsdp="8")
    assert "f32[64,208]" in text
    assert f"f32[{L},64,208]" not in text and f"f32[{L},8,208]" in text


@pytest.mark.slow
def test_replicas_of_shards_reduce_the_shards_once_a_step():
    sent = executions(data="2", fsdp="4")
    assert sent["reduce-scatter", ("fsdp",)] == A * (KERNELS * L + 1)
    assert sent["all-reduce", ("data",)] == 1
    assert {axes for kind, axes in sent if kind != "all-reduce"} == {("fsdp",)}


@pytest.mark.slow
def test_tensor_parallelism_gathers_and_scatters_the_sequence_around_each_sublayer():
    sent = executions(tensor="4")
    # Forward 2 gathers and 2 scatters a layer, backward as many, and again what the backward pass computes anew (not
    # the last scatter, whose result is the next layer's input). Around them the embedding and the loss, whose chunks
    # exchange two numbers per token.
    assert sent.pop(("all-gather", ("tensor",))) == A * (6 * L + 3)
    assert sent.pop(("reduce-scatter", ("tensor",))) == A * (5 * L + 2)
    assert sent.pop(("all-reduce", ("tensor",))) <= 3, "vectors, and the scalar cotangents"
    assert not sent


@pytest.mark.slow
def test_zero_3_and_tensor_parallelism_send_what_each_sends():
    sent = executions(fsdp="4", tensor="2")
    assert sent["all-gather", ("tensor",)] == A * (6 * L + 3)
    assert sent["reduce-scatter", ("tensor",)] == A * (5 * L + 2)
    assert sent["reduce-scatter", ("fsdp",)] == A * (KERNELS * L + 1)
    assert {kind for kind, _ in sent} == {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.slow
def test_a_pipeline_sends_two_arrays_a_tick_and_gathers_ids_alone():
    sent = executions(stage="2", data="2")
    ticks = A + 2 - 1
    assert sent["collective-permute", ("stage",)] == 2 * (2 * ticks + 1), "forward and backward, and once home"
    assert sent["all-gather", ("stage",)] <= 3, "tokens, positions, segments"
    assert {kind for kind, axes in sent if axes != ("stage",)} == {"all-reduce"}


@pytest.mark.slow
def test_a_ring_permutes_and_gathers_nothing():
    sent = executions(context="4")
    assert {kind for kind, _ in sent} == {"collective-permute", "all-reduce"}
    assert sent["all-reduce", ("context",)] <= 4


@pytest.mark.slow
def test_experts_with_a_capacity_exchange_their_buffers_and_nothing_else():
    mixture = {"model.num_experts": "4", "model.d_ff": "32", "model.expert_capacity": "2.0"}
    sent = executions(mixture, expert="4")
    # To the experts and back: forward, again for the backward pass (whose last way back is not needed), backward.
    assert A * L * 5 <= sent.pop(("all-to-all", ("expert",))) <= A * L * 6
    assert {kind for kind, _ in sent} == {"all-reduce"}
