"""What is read is what was saved, or it is refused by name."""

import gc
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm.checkpoint.average import restore_average
from lm.checkpoint.layout import finished_steps
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints
from lm.errors import DamagedFileError, UsageError
from tests.checkpoint.common import change_number, names, save, state, targets, written


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    assert written(folder, 10, 20) == []
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Checkpoints of steps 10 and 20, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("devices", [8, 1, 2])
@pytest.mark.parametrize(("item", "path"), [("params", "layers/kernel"), ("opt_state", "count")])
def test_one_number_that_changed_is_found_on_any_mesh_and_named(folder, item, path, devices):
    change_number(folder / "20", item, path)
    wanted, lines = targets(state(devices=devices)), []
    checkpoints = Checkpoints(str(folder), warn=lines.append)
    assert checkpoints.restore(wanted).step == 10
    assert len(lines) == 1 and f"{item}/{path} is not what was saved" in lines[0] and str(folder / "20") in lines[0]
    with pytest.raises(DamagedFileError, match=f"{item}/{path}"):
        checkpoints.restore(wanted, step=20)
    unasked = Checkpoints(str(folder), verify=False).restore(wanted, step=20)
    assert unasked.step == 20, "verification can be turned off"
    if item == "opt_state":  # evaluation reads the parameters alone
        assert checkpoints.restore({"params": wanted["params"]}).step == 20


def test_a_part_of_an_item_is_verified_too(tmp_path):
    items = state() | {"extra": {"ema": state()["params"], "scale": state()["params"]["scale"]}}
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, items, data={}, meta={})
    checkpoints.close()
    part = {"extra/ema": targets(items["extra"]["ema"])}
    assert checkpoints.restore(part).step == 1
    change_number(tmp_path / "1", "extra", "ema/layers/kernel")
    with pytest.raises(DamagedFileError, match="extra/ema/layers/kernel"):
        checkpoints.restore(part, step=1)


@pytest.mark.parametrize("file", ["data", "meta"])
def test_json_that_changed_is_refused(folder, file):
    path = folder / "20" / file / "metadata"
    content = json.loads(path.read_text())
    content[{"data": "rows_consumed", "meta": "step"}[file]] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match=r'20" is damaged: data or meta'):
        Checkpoints(str(folder)).restore(targets(state()), step=20)


@pytest.mark.parametrize("key", ["digest", "checksums"])
def test_checksums_cannot_be_lost(folder, key):
    path = folder / "20" / "meta" / "metadata"
    path.write_text(path.read_text().replace(key, key[:-1] + "_"))
    with pytest.raises(DamagedFileError, match="data or meta"):
        Checkpoints(str(folder)).restore(targets(state()), step=20)


def test_a_list_of_arrays_that_lost_one_is_damage_and_not_another_config(folder):
    path = folder / "20" / "params" / "_METADATA"
    path.write_text(path.read_text().replace("scale", "scald"))
    with pytest.raises(DamagedFileError, match=r"other arrays than were saved \(params/scal"):
        Checkpoints(str(folder)).restore(targets(state()), step=20)


def test_a_checkpoint_without_checksums_still_opens_with_one_line(folder):
    path = folder / "20" / "meta" / "metadata"
    path.write_text(json.dumps({"step": 20}))
    lines: list[str] = []
    restored = Checkpoints(str(folder), warn=lines.append).restore(targets(state()))
    assert restored.step == 20 and restored.meta == {"step": 20}
    assert len(lines) == 1 and "has no checksums" in lines[0] and str(folder / "20") in lines[0]
    with pytest.raises(UsageError, match="no checksums"):
        CheckpointReader(str(folder / "20")).verify("params")


def test_what_is_restored_has_no_checksums_in_its_meta(folder):
    restored = Checkpoints(str(folder)).restore(targets(state()))
    assert restored.meta == {"step": 20} and restored.data == {"rows_consumed": 20}


def test_the_reader_verifies_without_jax_and_lists_what_is_damaged(folder):
    code = (
        "import sys, json; from lm.checkpoint.reader import CheckpointReader as R; r = R(sys.argv[1]);"
        "print(json.dumps([r.verify('params'), r.verify('opt_state'), 'jax' in sys.modules]))"
    )

    def verify():
        command = [sys.executable, "-c", code, str(folder / "20")]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert verify() == [[], [], False]
    change_number(folder / "20", "params", "scale")
    change_number(folder / "20", "opt_state", "mu/layers/kernel")
    assert verify() == [["scale"], ["mu/layers/kernel"], False]


def test_the_reader_verifies_arrays_in_the_chunks_of_eight_devices(saved):
    """Each device wrote its own part: their sums add up to the array's."""
    reader = CheckpointReader(str(saved / "20"))
    assert tuple(reader.open("params", "layers/kernel").chunk_layout.read_chunk.shape) == (2, 2, 24)
    assert reader.verify("params") == []


def test_the_run_sets_a_damaged_newest_checkpoint_aside_and_readers_do_not(folder):
    change_number(folder / "20", "params", "scale")
    assert Checkpoints(str(folder)).restore(targets(state())).step == 10
    assert names(folder) == {"10", "20"}
    lines: list[str] = []
    checkpoints = Checkpoints(str(folder), warn=lines.append)
    assert checkpoints.restore(targets(state()), set_aside=True).step == 10
    assert names(folder) == {"10", "20.damaged"} and finished_steps(str(folder)) == [10]
    assert len(lines) == 1 and 'set aside as "20.damaged"' in lines[0] and "params/scale" in lines[0]
    save(checkpoints, 20)
    checkpoints.close()
    change_number(folder / "20", "params", "scale")
    checkpoints.restore(targets(state()), set_aside=True)
    assert names(folder) == {"10", "20.damaged", "20.damaged-2"}


def test_nothing_is_set_aside_when_nothing_else_is_whole(folder):
    for step in ("10", "20"):
        change_number(folder / step, "params", "scale")
    lines: list[str] = []
    with pytest.raises(DamagedFileError, match="can be read"):
        Checkpoints(str(folder), warn=lines.append).restore(targets(state()), set_aside=True)
    assert names(folder) == {"10", "20"}
    assert len(lines) == 2


def test_values_come_back_bit_for_bit(folder):
    restored = Checkpoints(str(folder)).restore(targets(state()))
    for got, expected in zip(jax.tree.leaves(restored.items), jax.tree.leaves(state(20)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


@pytest.mark.slow
def test_thirty_random_flips_are_detected_or_harmless(tmp_path):
    from experiments.benchmarks.checkpoint_integrity import SmallRun, flips

    table = flips(SmallRun(tmp_path), 30, seed=1)
    totals = {outcome: sum(row[outcome] for row in table.values()) for outcome in next(iter(table.values()))}
    assert totals["SILENT"] == totals["crashed"] == 0
    assert totals["detected"] >= 10 and sum(totals.values()) == 30


def test_a_damaged_checkpoints_arrays_are_gone_when_the_one_before_it_is_read(folder, monkeypatch):
    change_number(folder / "20", "params", "scale")
    live, read = [], Checkpoints._read

    def count(self, *args):
        live.append(sum(array.nbytes for array in jax.live_arrays()))
        return read(self, *args)

    monkeypatch.setattr(Checkpoints, "_read", count)
    wanted = targets(state())
    gc.collect()
    gc.disable()
    try:
        assert Checkpoints(str(folder)).restore(wanted, set_aside=True).step == 10
    finally:
        gc.enable()
    assert len(live) == 2 and live[1] == live[0]


def test_beside_the_sum_an_average_has_one_checkpoint_in_memory(tmp_path, monkeypatch):
    written(tmp_path, 1, 2, 3, keep=3)
    checkpoints, params = Checkpoints(str(tmp_path)), targets(state()["params"])
    live, restore = [], checkpoints.restore

    def count(*args, **kwargs):
        live.append(sum(array.nbytes for array in jax.live_arrays()))
        return restore(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "restore", count)
    gc.collect()
    restore_average(checkpoints, params, 3, warn=pytest.fail)
    assert live[2] - live[0] == sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(params))
