"""Scores of continuations against one forward pass per request, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.axes import SHARDED_AXES
from lm.errors import UsageError
from lm.evaluate.prefixes import Forest, pack, rounded_up, truncated
from lm.evaluate.score import Scorer
from lm.model import Transformer
from lm.parallel.mesh import make_mesh, parameter_shardings
from tests.train.common import V, small_config

QUESTION = [95, *range(1, 12)]
REQUESTS = [
    *((QUESTION, choice) for choice in ([20], [21], [20, 30], [20, 30, 40], [50, 51, 52, 53])),
    ([95], [1, 2, 3, 4, 60]),  # begins as the question does
    ([95], [7]),
    ([95, 3, 3], [9, 9, 9, 9, 9, 9, 9, 9]),
    (QUESTION, [20]),  # asked twice
    ([*range(20, 80)], [5, 6]),  # longer than the model takes
]
MAX_LENGTH = 24


def scorer_on(devices: int = 1, score: dict | None = None, **overrides: str):
    config = small_config(devices=devices, **overrides)
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    model = Transformer(config.model, config.precision)
    params = jax.jit(model.init)(jax.random.key(1))
    # So large that greedy decoding is sure of itself, and every position and every layer shows.
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    options = {"max_length": MAX_LENGTH, "row_length": 32, "batch_tokens": 64} | (score or {})
    scorer = Scorer(config, mesh, **options)
    return scorer, model, jax.device_put(params, parameter_shardings(mesh, params, SHARDED_AXES)), params


@functools.cache
def forward(model):
    @jax.jit
    def log_probabilities(params, tokens_1T, segments_1T):
        positions_1T = jnp.arange(MAX_LENGTH)[None]
        hidden_1TD = model.hidden(params, tokens_1T, positions_1T, segments_1T).x_BTD
        return jax.nn.log_softmax(model.logits(params, hidden_1TD)[0])

    return log_probabilities


def log_probabilities(model, params, ids) -> np.ndarray:
    """`[tokens - 1, V]` after each token but the last; the row is filled up behind them, so that one program serves all."""
    tokens, length = np.zeros((1, MAX_LENGTH), np.int32), len(ids) - 1
    tokens[0, :length] = ids[:-1]
    return np.asarray(forward(model)(params, tokens, (np.arange(MAX_LENGTH)[None] < length).astype(np.int32)))[:length]


def one_by_one(model, params, requests) -> list[tuple[float, bool]]:
    out = []
    for context, continuation in requests:
        ids = [*context, *continuation][-(MAX_LENGTH + 1) :]
        log_TV = log_probabilities(model, params, ids)[-len(continuation) :]
        out.append(
            (log_TV[np.arange(len(continuation)), continuation].sum(), (log_TV.argmax(-1) == continuation).all())
        )
    return out


def greedy_request(model, params) -> tuple[list[int], list[int]]:
    ids = list(QUESTION)
    for _ in range(3):
        ids.append(int(log_probabilities(model, params, [*ids, 0])[-1].argmax()))
    return QUESTION, ids[len(QUESTION) :]


def check(scorer, model, placed, params) -> None:
    requests = [*REQUESTS, greedy_request(model, params)]
    expected = one_by_one(model, params, requests)
    assert [greedy for _, greedy in expected][-1] and not all(greedy for _, greedy in expected)
    scores = scorer(placed, requests)
    np.testing.assert_allclose([s.loglikelihood for s in scores], [ll for ll, _ in expected], rtol=2e-5, atol=2e-5)
    assert [s.is_greedy for s in scores] == [bool(greedy) for _, greedy in expected]


@pytest.mark.parametrize("share", [pytest.param(True, marks=pytest.mark.slow), False])
def test_scores_equal_one_forward_pass_per_request(share):
    check(*scorer_on(score={"share": share}))


MODELS = {
    "learned positions": {"model.positions": "learned", "model.max_positions": "24"},
    "softcaps": {"model.logit_softcap": "5.0", "model.attention_softcap": "2.0", "model.num_kv_heads": "2"},
    "window": {"model.window": "(3, None)"},
    "experts": {"model.num_experts": "4"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_model_whatever_it_is(name):
    check(*scorer_on(**MODELS[name]))


MESHES = {
    "fsdp": {"parallel.fsdp": "4", "parallel.data": "2"},
    "tensor": {"parallel.tensor": "4", "parallel.data": "2"},
    "context": {"parallel.context": "2", "parallel.fsdp": "2", "data.sequence_length": "8"},
    "stage": {"parallel.stage": "2", "parallel.tensor": "2", "optimizer.accumulation_steps": "2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_scores_are_the_same_on_every_mesh(name):
    sizes = [int(size) for path, size in MESHES[name].items() if path.startswith("parallel.")]
    check(*scorer_on(int(np.prod(sizes)), **MESHES[name]))


def test_shared_beginnings_are_computed_once():
    choices = [(QUESTION, [30 + i, 40]) for i in range(4)]
    ids = [truncated(*request, MAX_LENGTH) for request in choices]
    (tree,) = Forest(ids, [2] * 4).trees(64)
    assert len(tree.tokens) == len(QUESTION) + 4
    assert len(tree.targets) == 8
    assert sum(len(t.tokens) for t in Forest(ids, [2] * 4, share=False).trees(64)) == 4 * (len(QUESTION) + 1)


def test_rows_are_longer_where_that_shares_more():
    scorer, *_ = scorer_on(score={"max_length": 60, "batch_tokens": 512})
    shots = list(range(50))
    alike = scorer.batches([(shots, [60 + i % 30, i // 30]) for i in range(200)])
    assert alike[0].rows["tokens_PRT"].shape[-1] > 64
    random = np.random.default_rng(0)
    unlike = scorer.batches([(random.integers(0, 90, 50).tolist(), [1, 2]) for _ in range(200)])
    assert unlike[0].rows["tokens_PRT"].shape[-1] == 64


def test_a_token_of_a_tree_sees_its_own_text_only():
    random = np.random.default_rng(0)
    requests = [random.integers(0, 3, random.integers(2, 12)) for _ in range(200)]
    trees = Forest(requests, [1] * len(requests)).trees(40)
    found = set()
    for tree in trees:
        assert len(tree.tokens) <= 40
        nodes = np.arange(len(tree.tokens))
        for number, slots in tree.slots:
            (slot,) = slots
            parent = tree.parents[slot]
            path = nodes[(nodes <= parent) & (parent < tree.ends)]
            assert tree.tokens[path].tolist() == requests[number][:-1].tolist()
            assert tree.depths[path].tolist() == list(range(len(path)))
            assert tree.targets[slot] == requests[number][-1]
            found.add(number)
    assert found == set(range(200))


def test_batches_are_all_of_one_shape_and_ask_for_everything_once():
    random = np.random.default_rng(0)
    ids = [random.integers(0, 50, random.integers(2, 30)) for _ in range(300)]
    batches = pack(Forest(ids, [1] * 300).trees(32), parts=2, max_rows=3, length=32)
    assert len({(b.rows["tokens_PRT"].shape, b.slots["target_PS"].shape) for b in batches}) == 1
    assert sorted(number for batch in batches for number, _ in batch.requests) == list(range(300))


def test_few_programs_are_compiled_for_many_sizes():
    assert [rounded_up(n) for n in (1, 64, 65, 96, 97, 128, 129, 193)] == [64, 64, 96, 96, 128, 128, 192, 256]


def test_what_cannot_be_scored_is_refused():
    scorer, _, placed, _ = scorer_on()
    with pytest.raises(UsageError, match="30 tokens, more than the 24"):
        scorer(placed, [([1], list(range(30)))])
    with pytest.raises(UsageError, match="at least one token"):
        scorer(placed, [([1], [])])
    assert scorer(placed, []) == []


def test_scores_come_batch_by_batch():
    scorer, *_, params = scorer_on()
    random = np.random.default_rng(0)
    requests = [(random.integers(0, V, 20).tolist(), [1, 2]) for _ in range(20)]
    batches = list(scorer.stream(params, requests))
    assert len(batches) > 2
    assert sorted(number for batch in batches for number, _ in batch) == list(range(20))
