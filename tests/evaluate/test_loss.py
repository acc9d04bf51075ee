"""Evaluation: strided windows against scoring one token at a time, on any mesh."""

import math

import jax
import numpy as np
import pytest

from lm.axes import SHARDED_AXES
from lm.data.shards import Shard
from lm.data.windows import EvalBatches
from lm.evaluate import LossEvaluator
from lm.evaluate.loss import summarize
from lm.model import Transformer
from lm.parallel.auto import auto_layout
from lm.parallel.local import local_model
from lm.parallel.mesh import parameter_shardings
from tests.train.common import mesh_of, small_config

LENGTH = 8
DOCUMENTS = [np.array([95, *range(1, 14)], np.uint32), np.array([95, 7, 7], np.uint32)]
TOKEN_BYTES = np.where(np.arange(96) == 95, 0, 3).astype(np.int32)


def evaluator_on(devices: int, **overrides):
    mesh, config = mesh_of(devices, 1), small_config(devices=devices, **overrides)
    model = Transformer(config.model, config.precision, auto_layout(mesh))
    params = jax.jit(model.init)(jax.random.key(1))
    params = jax.device_put(params, parameter_shardings(mesh, params, SHARDED_AXES))
    return (
        LossEvaluator(local_model(config, mesh)),
        model,
        params,
    )


def batches(stride: int) -> EvalBatches:
    shard = Shard.from_documents(DOCUMENTS, 95)
    return EvalBatches([shard], TOKEN_BYTES, sequence_length=LENGTH, batch_size=8, stride=stride)


def by_hand(model, params, stride: int) -> float:
    """Each target once, from the window that scores it."""
    total = 0.0
    for document in DOCUMENTS:
        ids = [*document.tolist(), 95]
        done = start = 0
        while done < len(document):
            window = ids[start : start + LENGTH]
            targets = ids[start + 1 : start + 1 + LENGTH]
            window = window[: len(targets)]
            row = np.arange(len(window))[None]
            hidden, *_ = model.hidden(params, np.array([window]), row, np.ones_like(row))
            log_probability = jax.nn.log_softmax(model.logits(params, hidden)[0])
            for position in range(done - start, len(targets)):
                total -= float(log_probability[position, targets[position]])
            done = start + len(targets)
            start += stride
    return total


@pytest.mark.parametrize(
    "stride", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(LENGTH, marks=pytest.mark.slow)]
)
def test_strided_windows_equal_scoring_by_hand(stride):
    evaluate, model, params = evaluator_on(1)
    figures = evaluate(params, batches(stride))
    assert figures["tokens"] == sum(len(document) for document in DOCUMENTS)
    assert figures["bytes"] == 3 * (13 + 2)
    expected = by_hand(model, params, stride)
    assert figures["loss"] * figures["tokens"] == pytest.approx(expected, rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(expected / 45 / math.log(2), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))


@pytest.mark.slow
def test_a_mixture_is_scored_without_its_routers_losses():
    evaluate, model, params = evaluator_on(1, **{"model.num_experts": "4", "model.router_balance_loss": "10.0"})
    figures = evaluate(params, batches(LENGTH))
    assert figures["loss"] * figures["tokens"] == pytest.approx(by_hand(model, params, LENGTH), rel=1e-5)


def test_the_mesh_changes_nothing():
    single, sharded = evaluator_on(1), evaluator_on(8)
    a, b = (evaluate(params, batches(3)) for evaluate, _, params in (single, sharded))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    assert a["tokens"] == b["tokens"]


def test_a_model_that_knows_nothing_pays_log_v_per_token():
    evaluate, _, params = evaluator_on(1)
    params["embed"]["tokens"]["embedding"] *= 0
    assert evaluate(params, batches(LENGTH))["loss"] == pytest.approx(math.log(96), rel=1e-6)


def test_undefined_figures_are_none_not_zero():
    assert summarize(0.0, 0, 0) == {"loss": None, "perplexity": None, "bits_per_byte": None, "tokens": 0, "bytes": 0}
    assert summarize(10.0, 2, 0)["bits_per_byte"] is None
