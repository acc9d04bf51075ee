"""Evaluation: every target scored once, with the context promised."""

import numpy as np
import pytest

from lm.data.dataset import open_data
from lm.data.shards import Shard
from lm.data.windows import EvalBatches, strided_windows

T = 16


@pytest.mark.parametrize("stride", [1, 5, 8, 15, 16])
def test_every_target_is_scored_once_with_enough_context(stride):
    doc_lengths = np.array([1, 15, 16, 17, 40, 160, 3])
    doc_starts = np.cumsum([0, *doc_lengths[:-1]])
    starts, lengths, score_from = strided_windows(doc_starts, doc_lengths, T, stride)
    assert lengths.max() <= T
    scored = np.concatenate([np.arange(a + s, a + n) for a, n, s in zip(starts, lengths, score_from, strict=True)])
    np.testing.assert_array_equal(np.sort(scored), np.arange(doc_lengths.sum()))
    owner = np.searchsorted(np.cumsum(doc_lengths), np.arange(doc_lengths.sum()), side="right")
    for start, length, first in zip(starts, lengths, score_from, strict=True):
        assert owner[start] == owner[start + length - 1]  # a window stays within its document
        assert first == 0 if start in doc_starts else first == T - stride


def test_a_stride_beyond_the_window_is_refused():
    with pytest.raises(ValueError, match="stride"):
        strided_windows([0], [10], T, T + 1)


@pytest.mark.parametrize("which", ["folder", "sharded_folder"])
@pytest.mark.parametrize("stride", [None, 4])
def test_batches_of_a_split_score_all_its_tokens_and_bytes(which, stride, request):
    dataset = open_data(request.getfixturevalue(which))
    batches = EvalBatches.of_split(dataset, "validation", sequence_length=T, batch_size=4, stride=stride)
    counts = dataset.counts("validation")
    pairs, total_bytes = [], 0
    for batch in batches:
        assert {array.shape for array in batch.values()} == {(4, T)}
        scored = batch["weights_BT"] == 1
        assert (batch["segment_ids_BT"][scored] > 0).all()
        pairs.append(np.stack([batch["inputs_BT"][scored], batch["targets_BT"][scored]]))
        total_bytes += batch["target_bytes_BT"].sum()
    pairs = np.concatenate(pairs, axis=1)
    expected = [np.stack([s.tokens[:-1], s.tokens[1:]]) for s in dataset.shards("validation")]
    expected = np.concatenate(expected, axis=1)
    assert pairs.shape[1] == batches.num_tokens == counts["tokens"]
    assert total_bytes == counts["bytes"]
    np.testing.assert_array_equal(pairs[:, np.lexsort(pairs)], expected[:, np.lexsort(expected)])


def test_windows_of_one_row_are_segments_with_their_own_positions(dataset):
    batches = EvalBatches.of_split(dataset, "validation", sequence_length=64, batch_size=2, stride=16)
    for batch in batches:
        for segments, positions in zip(batch["segment_ids_BT"], batch["positions_BT"], strict=True):
            opens = np.diff(segments, prepend=0) > 0
            assert (positions[opens] == 0).all()
            assert (np.diff(positions)[~opens[1:] & (segments[1:] > 0)] == 1).all()


def test_a_text_is_scored_like_a_document(dataset):
    text = "abcdef 12 " * 30
    batches = EvalBatches.of_texts(dataset.tokenizer, [text, "short"], sequence_length=T, batch_size=3, stride=4)
    total = sum(batch["target_bytes_BT"].sum() for batch in batches)
    assert total == len(text) + len("short")
    assert sum(batch["weights_BT"].sum() for batch in batches) == batches.num_tokens
    assert len(list(batches)) == len(batches)


def test_a_token_limit_takes_the_same_windows_every_time_and_no_more_than_one_too_many(dataset):
    def read():
        batches = EvalBatches.of_split(dataset, "train", sequence_length=T, batch_size=4, stride=8, max_tokens=500)
        assert 500 <= batches.num_tokens < 500 + T
        return np.concatenate([batch["inputs_BT"] for batch in batches])

    np.testing.assert_array_equal(read(), read())


def test_no_texts_give_no_batches(dataset):
    assert list(EvalBatches.of_texts(dataset.tokenizer, [], sequence_length=T, batch_size=2)) == []
    shard = Shard.from_documents([], 7)
    assert shard.tokens.tolist() == [7]
    with pytest.raises(IndexError):
        EvalBatches([shard], dataset.token_bytes, sequence_length=T, batch_size=2).batch(0)
