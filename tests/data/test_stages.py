"""The batch schedule: one order of the data, read on by every stage, in its own shape."""

import numpy as np
import pytest

from lm.data.loader import Loader
from lm.data.stages import Stages

ROW = 32
# Lengths that grow and shrink; the third begins in the middle of a piece of 32, the fourth of one of 16.
SCHEDULE = ((0, 2, 8), (3, 4, 16), (6, 3, 32), (8, 5, 8), (9, 2, 16))
STEPS = 12


@pytest.fixture(params=["folder", "sharded_folder"])
def any_folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["concat", "best_fit"])
def loader(request, any_folder):
    return Loader(any_folder, sequence_length=ROW, stages=SCHEDULE, packing=request.param)


def test_tokens_and_position_are_those_of_counting_step_by_step():
    stages, tokens, position = Stages(SCHEDULE, ROW), 0, 0
    for step in range(STEPS):
        _, batch_size, length = max(stage for stage in SCHEDULE if stage[0] <= step)
        position = -(-position // length) * length  # nothing is passed over but the rest of a piece
        assert stages.tokens(step) == tokens == sum(stages.tokens_by_length(step).values())
        assert stages.position(step) == position
        assert (stages.at(step).batch_size, stages.at(step).sequence_length) == (batch_size, length)
        tokens, position = tokens + batch_size * length, position + batch_size * length
    assert stages.tokens_by_length(4) == {8: 48, 16: 64, 32: 0}


def test_every_batch_has_its_stages_shape_and_is_cut_from_the_whole_rows(loader):
    """Tokens, weights and bytes of a piece are the row's; its segments and positions restart."""
    for step in range(STEPS):
        stage, batch = loader.stages.at(step), loader.batch(step)
        length = stage.sequence_length
        first = loader.stages.position(step)
        whole = loader.numbered_rows(np.arange(first // ROW, (first + stage.batch_size * length) // ROW + 1))
        for name in ("inputs_BT", "targets_BT", "weights_BT", "target_bytes_BT"):
            expected = whole[name].reshape(-1)[first % ROW :][: stage.batch_size * length]
            np.testing.assert_array_equal(batch[name], expected.reshape(-1, length), err_msg=f"{name} at {step}")
        for inputs, segments, positions, weights in zip(
            *(batch[name] for name in ("inputs_BT", "segment_ids_BT", "positions_BT", "weights_BT")), strict=True
        ):
            real = int(weights.sum())
            assert not segments[real:].any() and not positions[real:].any()
            if real:
                assert segments[0] == 1 and positions[0] == 0
                opens = np.diff(segments[:real]) == 1
                np.testing.assert_array_equal(positions[1:real], np.where(opens, 0, positions[: real - 1] + 1))
                eot = inputs[1:real] == loader.dataset.tokenizer.eot_id
                assert (opens | ~eot).all()  # a separator opens a document


def test_no_data_is_read_twice_in_an_epoch_and_all_of_it_is_read(any_folder):
    """Each stage's length divides where the one before it ended: nothing is passed over either."""
    rows = Loader(any_folder, sequence_length=ROW, batch_size=1).rows_per_epoch
    schedule = ((0, 4, 8), (3, 3, 32), (5, 4, 16))
    steps = 5 + 2 * (rows - 9) // 4 + 2  # an epoch and a bit
    loader = Loader(any_folder, sequence_length=ROW, stages=schedule)
    assert loader.epoch(steps) >= 1
    read = [loader.batch(step) for step in range(steps)]
    pieces = {name: np.concatenate([batch[name].reshape(-1) for batch in read]) for name in ("inputs_BT", "weights_BT")}
    epoch = loader.numbered_rows(np.arange(rows))
    for name, array in pieces.items():
        np.testing.assert_array_equal(array[: rows * ROW], epoch[name].reshape(-1))


def test_a_step_gives_the_same_batch_in_any_order_and_to_any_number_of_hosts(loader):
    for step in (8, 2, 6, 4):
        whole = loader.batch(step)
        B, T = whole["inputs_BT"].shape
        rows, columns = np.arange(B)[::-1], slice(T // 4, T // 2)
        part = loader.batch(step, rows=rows, columns=columns)
        for name, array in whole.items():
            np.testing.assert_array_equal(part[name], array[rows][:, columns])


def test_a_schedule_of_one_stage_changes_nothing(folder):
    plain = Loader(folder, sequence_length=ROW, batch_size=4)
    staged = Loader(folder, sequence_length=ROW, stages=((0, 4, ROW), (5, 4, ROW)))
    for step in (0, 4, 5, 30):
        assert plain.rows_consumed(step) == staged.rows_consumed(step) == 4 * step
        for name, array in plain.batch(step).items():
            np.testing.assert_array_equal(staged.batch(step)[name], array)


def test_rows_partly_read_count_as_read_but_not_in_the_epoch(folder):
    loader = Loader(folder, sequence_length=ROW, stages=((0, 3, 8),))
    assert [loader.rows_consumed(step) for step in range(5)] == [0, 1, 2, 3, 3]
    assert loader.epoch(4) == 3 / loader.rows_per_epoch
    assert loader.epoch(1) == 0.75 / loader.rows_per_epoch
