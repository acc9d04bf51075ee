"""Generation: the cached loop equals recomputing, draws follow the filters, rows do not affect each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UsageError
from lm.infer.generate import Generator
from lm.infer.sampling import SamplingConfig, filter_logits, sample
from tests.model.common import small_model

GREEDY = SamplingConfig(temperature=0)


def make(positions: str):
    model = small_model(
        **{
            "model.positions": positions,
            "model.max_positions": "64",
            "model.window": "(8, None)",
            "model.num_kv_heads": "2",
            "model.initializer": "fan_in",
            "model.embedding_std": "0.05",
        }
    )
    return model, jax.jit(model.init)(jax.random.key(3))


@pytest.fixture(scope="module")
def trained():
    return make("rope")


def recomputed(model, params, prompt: list[int], count: int, vocab: int) -> list[int]:
    """Greedy continuation without a cache."""
    hidden = jax.jit(model.hidden)
    ids = list(prompt)
    for _ in range(count):
        padded = jnp.array([ids + [0] * (32 - len(ids))])
        row = jnp.arange(32)[None]
        out, *_ = hidden(params, padded, row, (row < len(ids)).astype(jnp.int32))
        ids.append(int(jnp.argmax(model.logits(params, out)[0, len(ids) - 1, :vocab])))
    return ids[len(prompt) :]


@pytest.mark.parametrize("positions", ["rope", pytest.param("learned", marks=pytest.mark.slow)])
def test_greedy_decoding_with_a_cache_equals_recomputing(positions):
    model, params = make(positions)
    prompts = [[5, 6, 7], [1, 2, 3, 4, 8, 9, 10, 11], [12]]  # ragged: two rows are padded on the left
    together = Generator(model, 96, eot_id=95, chunk=4)(params, prompts, max_new_tokens=10, sampling=GREEDY)
    for prompt, ids in zip(prompts, together, strict=True):
        expected = recomputed(model, params, prompt, 10, 96)
        assert ids == expected[: expected.index(95)] if 95 in expected else ids == expected


@pytest.mark.slow
def test_a_row_draws_the_same_alone_as_beside_another(trained):
    model, params = trained
    generator = Generator(model, 96, eot_id=95, chunk=4)
    both = generator(params, [[5, 6, 7], [1, 2, 3, 4, 8]], max_new_tokens=12, seed=4)
    alone = generator(params, [[5, 6, 7]], max_new_tokens=12, seed=4)
    assert both[0] == alone[0]
    assert generator(params, [[5, 6, 7]], max_new_tokens=12, seed=5) != alone
    repeated = generator(params, [[5, 6, 7]] * 2, max_new_tokens=12, seed=4)
    assert repeated[0] != repeated[1], "equal prompts in one batch draw differently"


def test_streaming_gives_the_same_tokens_in_chunks(trained):
    model, params = trained
    generator = Generator(model, 96, eot_id=95, chunk=4)
    chunks = [rows[0] for rows in generator.stream(params, [[5, 6]], max_new_tokens=10, seed=1)]
    assert [i for chunk in chunks for i in chunk] == generator(params, [[5, 6]], max_new_tokens=10, seed=1)[0]
    assert len(chunks) > 1 and all(len(chunk) <= 4 for chunk in chunks)


def test_the_padded_part_of_the_vocabulary_is_never_drawn(trained):
    model, params = trained
    ids = Generator(model, 3, eot_id=95)(
        params, [[1]] * 8, max_new_tokens=16, sampling=SamplingConfig(temperature=50.0)
    )
    assert {i for row in ids for i in row} == {0, 1, 2}


def test_a_row_ends_at_the_end_of_text(trained):
    model, params = trained
    free = Generator(model, 96, eot_id=200)(params, [[5, 6, 7]], max_new_tokens=10, sampling=GREEDY)[0]
    eot = free[4]
    ended = Generator(model, 96, eot_id=eot, chunk=4)(params, [[5, 6, 7]], max_new_tokens=10, sampling=GREEDY)[0]
    assert ended == free[: free.index(eot)]


@pytest.mark.slow
def test_exactly_the_tokens_asked_for(trained):
    model, params = trained
    for count in (1, 5, 8):
        assert len(Generator(model, 96, eot_id=200, chunk=4)(params, [[1, 2]], max_new_tokens=count)[0]) == count


def test_settings_do_not_recompile(trained):
    model, params = trained
    generator = Generator(model, 96, eot_id=200, chunk=4)
    for sampling in (GREEDY, SamplingConfig(1.0, 5, 0.9), SamplingConfig(0.7)):
        generator(params, [[1, 2]], max_new_tokens=8, sampling=sampling, seed=3)
    assert generator._decode._cache_size() == generator._prefill._cache_size() == 1


def test_an_empty_prompt_and_too_many_learned_positions_are_refused():
    model, params = make("learned")
    generator = Generator(model, 96, eot_id=95)
    with pytest.raises(UsageError, match="no tokens"):
        generator(params, [[]], max_new_tokens=4)
    with pytest.raises(UsageError, match="64 learned positions"):
        generator(params, [[1, 2]], max_new_tokens=63)


LOGITS = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [1]),
        (2, 1.0, [1, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.4, [1]),
        (0, 0.41, [1, 3]),
        (0, 0.7001, [1, 2, 3]),
        (0, 1e-9, [1]),
        (3, 0.75, [1, 3]),  # of 0.9 kept by top-k, 0.4 + 0.3 is a share of 0.78
    ],
)
def test_filters_keep_the_smallest_set(top_k, top_p, kept):
    out = filter_logits(LOGITS, jnp.int32(top_k), jnp.float32(top_p))
    assert np.flatnonzero(np.isfinite(out[0])).tolist() == kept


def test_draws_follow_the_distribution():
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = sample(jnp.tile(LOGITS, (20_000, 1)), keys, SamplingConfig(temperature=0.5).arrays())
    expected = np.array([0.1, 0.4, 0.2, 0.3]) ** 2
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, expected / expected.sum(), atol=0.015)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": float("nan")}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(UsageError, match="expected"):
        SamplingConfig(**bad)
