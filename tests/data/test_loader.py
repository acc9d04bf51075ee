"""The loader: batches are a pure function of step, and hold what they say."""

import numpy as np
import pytest

from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.errors import UsageError

T, B = 32, 4


def loader_of(folder, **options):
    return Loader(folder, **{"sequence_length": T, "batch_size": B, **options})


def epoch_of(loader):
    """Return the arrays of one whole epoch, in order."""
    return loader.numbered_rows(np.arange(loader.rows_per_epoch))


@pytest.fixture(params=["concat", "best_fit"])
def packing(request):
    return request.param


@pytest.fixture(params=["folder", "sharded_folder"])
def any_folder(request):
    return request.getfixturevalue(request.param)


def test_an_epoch_holds_every_pair_of_input_and_target_once(any_folder, packing):
    loader = loader_of(any_folder, packing=packing)
    epoch = epoch_of(loader)
    real = epoch["weights_BT"] == 1
    pairs = np.stack([epoch["inputs_BT"][real], epoch["targets_BT"][real]])
    shards = open_data(any_folder).shards("train")
    expected = np.concatenate([np.stack([shard.tokens[:-1], shard.tokens[1:]]) for shard in shards], axis=1)
    assert pairs.shape[1] == loader.tokens_per_epoch
    np.testing.assert_array_equal(pairs[:, np.lexsort(pairs)], expected[:, np.lexsort(expected)])


def test_padding_has_no_weight_no_segment_and_no_bytes(any_folder, packing):
    loader = loader_of(any_folder, packing=packing)
    epoch = epoch_of(loader)
    padding = epoch["weights_BT"] == 0
    assert padding.any()
    assert loader.padding == pytest.approx(padding.mean())
    for name in ("inputs_BT", "targets_BT", "segment_ids_BT", "positions_BT", "target_bytes_BT"):
        assert not epoch[name][padding].any()
    assert (epoch["segment_ids_BT"][~padding] > 0).all()


def test_segments_and_positions_restart_where_documents_begin(any_folder, packing):
    loader = loader_of(any_folder, packing=packing)
    eot = loader.dataset.tokenizer.eot_id
    epoch = epoch_of(loader)
    for inputs, segments, positions, weights in zip(
        *(epoch[name] for name in ("inputs_BT", "segment_ids_BT", "positions_BT", "weights_BT")), strict=True
    ):
        for column in range(int(weights.sum())):
            opens = column == 0 or segments[column] != segments[column - 1]
            assert segments[column] == (1 if column == 0 else segments[column - 1] + opens)
            assert positions[column] == (0 if opens else positions[column - 1] + 1)
            assert opens or inputs[column] != eot  # the separator opens a document
            if packing == "concat" and column:
                assert opens == (inputs[column] == eot)


def test_without_a_document_mask_a_row_is_one_segment(folder):
    epoch = epoch_of(loader_of(folder, document_mask=False))
    real = epoch["weights_BT"] == 1
    np.testing.assert_array_equal(epoch["segment_ids_BT"], real.astype(np.int32))
    np.testing.assert_array_equal(epoch["positions_BT"], np.where(real, np.arange(T), 0))


def test_target_bytes_add_up_to_the_text(any_folder, packing):
    loader = loader_of(any_folder, packing=packing)
    assert epoch_of(loader)["target_bytes_BT"].sum() == open_data(any_folder).counts("train")["bytes"]


def test_arrays_have_the_promised_types(folder):
    batch = loader_of(folder).batch(0)
    types = {name: array.dtype for name, array in batch.items()}
    assert types.pop("weights_BT") == np.float32
    assert set(types.values()) == {np.dtype(np.int32)}
    assert all(array.shape == (B, T) for array in batch.values())


def test_a_step_gives_the_same_batch_in_any_order_of_asking(any_folder, packing):
    loader, again = (loader_of(any_folder, packing=packing) for _ in range(2))
    forward = [loader.batch(step) for step in range(12)]
    for step in (11, 3, 7, 0):
        for name, array in again.batch(step).items():
            np.testing.assert_array_equal(array, forward[step][name])


@pytest.mark.parametrize("hosts", [1, 2, 8])
def test_any_number_of_hosts_reads_the_same_global_batch(any_folder, packing, hosts):
    loader = loader_of(any_folder, packing=packing, batch_size=8)
    for step in (0, 20):
        whole, share = loader.batch(step), 8 // hosts
        parts = [loader.batch(step, rows=slice(h * share, (h + 1) * share)) for h in range(hosts)]
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_a_host_can_ask_for_rows_by_index_and_for_columns(folder):
    loader = loader_of(folder)
    whole = loader.batch(5)
    part = loader.batch(5, rows=np.array([2, 0]), columns=slice(8, 16))
    for name, array in whole.items():
        np.testing.assert_array_equal(part[name], array[[2, 0], 8:16])


def test_each_epoch_reads_every_row_once_in_an_order_of_its_own(folder):
    loader = loader_of(folder)
    rows = loader.rows_per_epoch
    first, second = (loader.row_indices(np.arange(epoch * rows, (epoch + 1) * rows)) for epoch in (0, 1))
    other_seed = loader_of(folder, seed=1).row_indices(np.arange(rows))
    for order in (first, second, other_seed):
        assert sorted(order) == list(range(rows))
    assert (first != second).any()
    assert (first != other_seed).any()
    assert (second != other_seed).any()


def test_another_batch_size_goes_on_with_the_same_rows(folder):
    small, large = loader_of(folder, batch_size=2), loader_of(folder, batch_size=6)
    joined = np.concatenate([small.batch(step)["inputs_BT"] for step in (3, 4, 5)])
    np.testing.assert_array_equal(joined, large.batch(1)["inputs_BT"])
    assert small.rows_consumed(3) == large.rows_consumed(1) == 6


def test_a_batch_larger_than_the_split_repeats_rows(folder):
    loader = loader_of(folder, split="test", batch_size=500)
    assert loader.rows_per_epoch < 500
    batch = loader.batch(0)
    assert batch["inputs_BT"].shape == (500, T)
    assert loader.epoch(1) == 500 / loader.rows_per_epoch


def test_an_unknown_packing_is_a_usage_error(folder):
    with pytest.raises(UsageError, match="best_fit"):
        loader_of(folder, packing="first_fit")
