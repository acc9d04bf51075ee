"""`lm plan` for hardware that is not here: formulas against the compiler, predictions against published runs."""

import json
import math
import re

import pytest

from experiments.benchmarks import remat
from lm.commands.common import load_config, resolve_for
from lm.config import apply_overrides, default
from lm.errors import ConfigError
from lm.model.flops import parameter_counts
from lm.parallel.topology import describe
from lm.plan.gate import check_fits
from lm.plan.plan import MARGIN, make_plan
from lm.plan.published import PUBLISHED, predict_published
from lm.plan.scale import scaled_plan, shrunk, slice_of, weak_scaling
from lm.plan.search import overrides, search
from lm.resolve import resolve

pytestmark = pytest.mark.aot


def small_for(name: str, **overrides_: str):
    config, topology = default(), describe(name)
    small = {"model.num_layers": "4", "model.d_model": "1024", "model.num_heads": "8", "model.vocab_size": "4096"}
    small |= {"data.sequence_length": "1024", "data.batch_size": str(4 * topology.num_devices)}
    small |= {"precision.compute": "bfloat16", "parallel.data": "1", "parallel.fsdp": "-1", "model.remat": "full"}
    apply_overrides(config, list((small | overrides_).items()))
    return resolve(config, devices=topology.num_devices, capabilities=topology.capabilities), topology


# No published run on GPUs states all of its config.
ON_TPUS = [run for run in PUBLISHED if not run.topology.startswith("h")]


@pytest.mark.parametrize("run", ON_TPUS, ids=lambda run: f"{run.name} {run.topology}")
def test_published_runs_on_tpus_are_predicted_within_a_fifth(run):
    predicted = predict_published(run)[1].mfu_full_attention
    assert predicted == pytest.approx(run.mfu, rel=0.02 if run.is_fitted else 0.2)


@pytest.fixture(scope="module")
def scaled():
    """A small model's plan for eight chips, scaled from four that it is compiled for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.plan.scale.COMPILED_DEVICES", 4)
        return scaled_plan(*small_for("v5e:2x4", **{"optimizer.accumulation_steps": "4"}))


@pytest.mark.slow
def test_a_small_models_memory_is_near_where_buffers_outside_the_formulas_weigh_more(scaled):
    plan = scaled.checked
    assert plan.memory.arguments == pytest.approx(plan.compiled.argument_bytes, rel=0.01)
    assert plan.memory.total == pytest.approx(plan.compiled.peak_bytes, rel=0.15)


@pytest.mark.slow
def test_two_slices_reduce_their_gradients_over_the_network_once_per_step():
    config, topology = small_for("2*v5e:2x2", **{"parallel.slices": "2", "optimizer.accumulation_steps": "2"})
    plan = make_plan(config, topology, compiled=True, optimize=False)
    assert plan.compiled.fits
    # Between slices libtpu sends through the host: each gradient's shard, outside the loop over micro-batches.
    sent = re.findall(r"send[.\d]* = \(f32\[([\d,]+)\].*xla_megascale_runtime", plan.compiled.text)
    elements = sum(math.prod(map(int, shape.split(","))) for shape in sent)
    shard = parameter_counts(config.model)["total"] / config.parallel.fsdp
    assert elements == pytest.approx(shard, rel=0.02)
    assert not [c for c in plan.collectives if "slices" in c.axes]


@pytest.mark.slow
def test_offloaded_activations_are_on_the_host():
    topology = describe("v5e:1x1")
    config = remat.config_of("aot", "offload:block_input", topology.capabilities)
    plan = make_plan(config, topology, compiled=True, optimize=False)
    assert plan.compiled.host_bytes == pytest.approx(plan.memory.host, rel=0.02)


def test_the_search_finds_what_fits_and_beats_the_config_it_is_given():
    config, topology = small_for("v5e:4x4")
    plans, given = search(config, topology), make_plan(config, topology).prediction.seconds
    assert all(plan.fits for plan in plans) and len(plans) == 5
    assert plans[0].prediction.seconds < given
    assert overrides(plans[0].config, config)


def test_a_7b_model_on_one_v5e_host_is_refused_with_what_to_do():
    topology = describe("v5e:2x4")
    config = resolve_for(
        load_config("experiments/llama_7b.py", [("parallel.fsdp", "8"), ("model.remat", "none")]), topology
    )
    with pytest.raises(ConfigError, match="config does not fit: .* GiB per device"):
        check_fits(config, topology.capabilities)


def test_a_slice_of_a_pod_has_the_same_work_per_device():
    assert slice_of("v5p:16x16x16") == "v5p:8x8x8" and slice_of("4*v5e:16x16") == "v5e:16x16"
    topology = describe("v5p:8x8x16")
    larger = [("parallel.data", "2"), ("data.batch_size", "2048")]
    config = resolve_for(load_config("experiments/llama_70b.py", larger), topology)
    smaller = shrunk(config, 2)
    assert (smaller.parallel.data, smaller.parallel.fsdp, smaller.data.batch_size) == (1, 512, 1024)
    with pytest.raises(ConfigError, match="same work per device"):
        shrunk(config, 3)


@pytest.mark.slow
def test_a_pod_is_scaled_from_a_compiled_slice(scaled):
    assert scaled.checked.topology.name == "v5e:2x2" and scaled.plan.compiled is None
    config, topology = small_for("v5e:2x4", **{"optimizer.accumulation_steps": "4"})
    whole = make_plan(config, topology, compiled=True)
    assert scaled.peak == pytest.approx(whole.compiled.peak_bytes, rel=MARGIN)


def test_weak_scaling_keeps_the_work_and_loses_little():
    topology = describe("v5p:4x4x4")
    config = resolve_for(load_config("experiments/llama_7b.py"), topology)
    points = weak_scaling(config, "v5p", [16, 64, 256])
    by_curve: dict = {}
    for point in points:
        by_curve.setdefault(point.curve, []).append(point.plan.prediction)
    assert len(by_curve) == 4
    for curve in by_curve.values():
        assert len({p.tokens / p.devices for p in curve}) == 1
        assert all(0 <= p.communication_share < 0.2 for p in curve)


@pytest.mark.slow
def test_the_verb_plans_for_a_pod_and_draws(capsys, tmp_path):
    from lm.__main__ import main

    common = ["plan", "--config=experiments/llama_7b.py"]
    assert main([*common, "--no-compile", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["topology"] == "v5p:4x4x4" and plan["fits"] and plan["prediction"]["binding"] == "compute"
    assert main([*common, "--scaling=16-256", f"--out={tmp_path}/scaling.svg"]) == 0
    drawn = (tmp_path / "scaling.svg").read_text()
    assert "Predicted, not measured" in drawn and re.search(r"tokens/s per\s+device", drawn)
