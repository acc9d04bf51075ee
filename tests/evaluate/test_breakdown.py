"""The loss by document, window and position: parts that add up to the whole, on any mesh."""

import jax
import numpy as np
import pytest

from lm.data.shards import Shard
from lm.data.windows import EvalBatches
from lm.evaluate.breakdown import Breakdown, break_down
from tests.evaluate.test_loss import LENGTH, TOKEN_BYTES, evaluator_on

draw = np.random.default_rng(0)
DOCUMENTS = [np.array([95, *draw.integers(0, 95, size)], np.uint32) for size in (13, 2, 30, 1, 5, 8)]


def batches(stride: int, documents=DOCUMENTS) -> EvalBatches:
    shards = [Shard.from_documents(documents[:2], 95), Shard.from_documents(documents[2:], 95)]
    return EvalBatches(shards, TOKEN_BYTES, sequence_length=LENGTH, batch_size=8, stride=stride)


@pytest.fixture(scope="module")
def single():
    return evaluator_on(1)


def test_the_parts_add_up_to_the_sums_over_all_tokens(single):
    evaluate, _, params = single
    whole = evaluate(params, batches(3))
    parts = break_down(evaluate, params, batches(3))
    for group in (parts.documents, parts.windows, parts.positions):
        nll, tokens, num_bytes = group.sum(0)
        assert nll / tokens == pytest.approx(whole["loss"], rel=1e-6)
        assert (tokens, num_bytes) == (whole["tokens"], whole["bytes"])
    assert parts.total()["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-6)
    assert parts.documents[:, 1].tolist() == [len(document) for document in DOCUMENTS]


def test_a_documents_loss_is_that_of_the_document_alone(single):
    evaluate, _, params = single
    parts = break_down(evaluate, params, batches(3))
    for number in (0, 2, 5):
        alone = evaluate(params, EvalBatches([Shard.from_documents([DOCUMENTS[number]], 95)], TOKEN_BYTES, sequence_length=LENGTH, batch_size=8, stride=3))  # fmt: skip
        nll, tokens, _ = parts.documents[number]
        assert nll / tokens == pytest.approx(alone["loss"], rel=1e-5)


def test_windows_score_their_stride_and_positions_count_what_stands_before(single):
    evaluate, _, params = single
    parts = break_down(evaluate, params, batches(3))
    # The first document has 14 targets: the first window scores 8, each later one 3 at places 5 to 7.
    assert parts.windows[:3, 1].tolist() == [8, 3, 3]
    firsts = sum(min(len(document), LENGTH) > 0 for document in DOCUMENTS)
    assert parts.positions[0, 1] == firsts, "place 0 is scored in first windows only"
    assert parts.positions[-1, 1] > parts.positions[1, 1] - firsts


def test_the_mesh_changes_nothing(single):
    sharded, _, sharded_params = evaluator_on(8)
    a, b = break_down(single[0], single[2], batches(3)), break_down(sharded, sharded_params, batches(3))
    np.testing.assert_allclose(a.documents, b.documents, rtol=1e-5)
    np.testing.assert_allclose(a.positions, b.positions, rtol=1e-5)


def test_domains_and_positions_are_named_and_empty_ones_have_no_loss():
    documents = np.array([[2.0, 1, 3], [4, 2, 6], [6, 3, 0], [0, 0, 0]])
    positions = np.stack([np.arange(1.0, 7), np.ones(6), np.ones(6)], -1)
    parts = Breakdown(documents, documents, positions)
    by = parts.by_domain(["b", "a", "b", "c"])
    assert list(by) == ["b", "a", "c"]
    assert by["b"]["loss"] == 2.0 and by["b"]["tokens"] == 4 and by["c"]["loss"] is None
    assert [(row["first"], row["last"], row["loss"]) for row in parts.by_position()] == [
        (0, 0, 1.0),
        (1, 1, 2.0),
        (2, 3, 3.5),
        (4, 5, 5.5),
    ]


@pytest.mark.slow
def test_tokens_come_in_their_order_from_devices_that_share_a_sequence(single):
    from lm.axes import SHARDED_AXES
    from lm.evaluate import LossEvaluator
    from lm.model import Transformer
    from lm.parallel.local import local_model
    from lm.parallel.mesh import make_mesh, parameter_shardings
    from tests.train.common import small_config

    config = small_config(devices=8, **{"parallel.data": "2", "parallel.context": "2", "parallel.tensor": "2"})
    mesh = make_mesh(config.parallel)
    params = jax.jit(Transformer(config.model, config.precision).init)(jax.random.key(1))
    params = jax.device_put(params, parameter_shardings(mesh, params, SHARDED_AXES))
    parts = break_down(LossEvaluator(local_model(config, mesh)), params, batches(3))
    expected = break_down(single[0], single[2], batches(3))
    np.testing.assert_allclose(parts.positions, expected.positions, rtol=1e-4)
    np.testing.assert_allclose(parts.documents, expected.documents, rtol=1e-4)
