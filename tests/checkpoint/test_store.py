"""Checkpoints: whole or not at all, opened on any mesh, damage named and passed over."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm.checkpoint.layout import finished_steps, unfinished
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints
from lm.errors import ConfigError, DamagedFileError, LmError, UsageError
from tests.train.common import built_step, fake_batch, scalars, small_config

ITEMS = ("params", "frozen", "opt_state", "extra")


@pytest.fixture(scope="module")
def trained():
    """A state whose optimizer has moved, on 8 devices with sharded parameters."""
    built = built_step(
        small_config(devices=8, fsdp=4, **{"optimizer.name": "muon", "precision.parameters": "bfloat16"})
    )
    state, _ = built.step(built.init(), fake_batch(built.mesh, 0), scalars(built, 0))
    return built, state


def items_of(state):
    return {name: getattr(state, name) for name in ITEMS}


@pytest.fixture
def folder(trained, tmp_path):
    """Checkpoints of steps 10 and 20."""
    _, state = trained
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), keep=2)
    for step in (10, 20):
        checkpoints.save(step, items_of(state), data={"rows_consumed": step * 16}, meta={"step": step})
    checkpoints.close()
    return tmp_path / "checkpoints"


def damage(folder: pathlib.Path) -> None:
    """Truncate every array file of the parameters."""
    for path in (folder / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
def test_a_checkpoint_opens_on_another_mesh_bit_for_bit(trained, folder):
    built, state = trained
    other = built_step(small_config(**{"optimizer.name": "muon", "precision.parameters": "bfloat16"}))
    for target in (built, other):
        restored = Checkpoints(str(folder)).restore(items_of(target.state))
        assert restored.step == 20
        assert restored.data == {"rows_consumed": 320}
        for name in ITEMS:
            got, expected = restored.items[name], getattr(state, name)
            assert jax.tree.structure(got) == jax.tree.structure(expected)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
        shardings = jax.tree.map(lambda a: a.sharding, restored.items["params"])
        assert shardings == jax.tree.map(lambda a: a.sharding, target.state.params)


def test_a_relative_path_with_dots_opens_too(trained, folder, monkeypatch):
    built, _ = trained
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert Checkpoints("../../checkpoints").restore({"params": built.state.params}).step == 20
    assert Checkpoints("./..").restore({"params": built.state.params}).step == 20


def test_a_chunk_that_is_missing_is_damage_and_not_zeros(trained, tmp_path):
    import tensorstore as ts

    _, state = trained
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, items_of(state), data={}, meta={})
    checkpoints.close()
    base = {"driver": "file", "path": f"{tmp_path}/1/params/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    chunks = [key for key in store.list().result() if key.startswith(b"layers.mlp.up.kernel/") and b".z" not in key]
    store.delete_range(ts.KvStore.KeyRange(chunks[0], chunks[0] + b"~")).result()
    with pytest.raises(DamagedFileError, match=r"params/layers/mlp/up/kernel cannot be read"):
        CheckpointReader(str(tmp_path / "1")).read("params", "layers/mlp/up/kernel")


def test_metadata_that_are_json_but_not_orbaxs_are_damage(folder):
    (folder / "20" / "params" / "_METADATA").write_text("{}")
    with pytest.raises(DamagedFileError, match="metadata of params"):
        CheckpointReader(str(folder / "20")).leaves("params")


def test_evaluation_reads_the_parameters_alone(trained, folder):
    built, _ = trained
    shutil.rmtree(folder / "20" / "opt_state")
    restored = Checkpoints(str(folder)).restore({"params": built.state.params})
    assert restored.step == 20
    assert set(restored.items) == {"params"}


def test_the_newest_are_kept(trained, tmp_path):
    _, state = trained
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step in (1, 2, 3, 10):
        checkpoints.save(step, items_of(state), data={}, meta={})
    checkpoints.close()
    assert finished_steps(str(tmp_path)) == [3, 10]


@pytest.mark.parametrize("how", ["truncated", "array file gone", "metadata gone", "not finished"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_one_line(trained, folder, how):
    newest = folder / "20"
    if how == "truncated":
        damage(newest)
    elif how == "array file gone":
        shutil.rmtree(newest / "params" / "d")
    elif how == "metadata gone":
        (newest / "params" / "_METADATA").unlink()
    else:
        (newest / "_CHECKPOINT_METADATA").unlink()
    built, _ = trained
    lines: list[str] = []
    checkpoints = Checkpoints(str(folder), warn=lines.append)
    assert checkpoints.restore(items_of(built.state)).step == 10
    assert len(lines) == 1 and "\n" not in lines[0]
    assert str(newest) in lines[0]
    with pytest.raises(DamagedFileError, match="20"):
        checkpoints.restore(items_of(built.state), step=20)


def test_no_readable_checkpoint_is_an_error(trained, folder):
    built, _ = trained
    damage(folder / "10")
    damage(folder / "20")
    with pytest.raises(DamagedFileError, match="can be read"):
        Checkpoints(str(folder)).restore(items_of(built.state))


def test_an_absent_checkpoint_is_a_usage_error(trained, folder, tmp_path):
    built, _ = trained
    with pytest.raises(UsageError, match=r"step 15.*\[10, 20\]"):
        Checkpoints(str(folder)).restore(items_of(built.state), step=15)
    with pytest.raises(UsageError, match="no checkpoint"):
        Checkpoints(str(tmp_path / "none")).restore(items_of(built.state))


def test_another_shape_or_type_is_refused_with_the_path_named(folder):
    wider = built_step(
        small_config(**{"model.d_ff": "256", "optimizer.name": "muon", "precision.parameters": "bfloat16"})
    )
    with pytest.raises(ConfigError, match=r"params/layers/mlp/down/kernel is bfloat16\[2, 192, 64\].*\[2, 256, 64\]"):
        Checkpoints(str(folder)).restore({"params": wider.state.params}, step=20)
    full = built_step(small_config(**{"optimizer.name": "muon"}))
    with pytest.raises(ConfigError, match=r"expected float32"):
        Checkpoints(str(folder)).restore({"params": full.state.params}, step=20)


def test_a_half_written_checkpoint_is_ignored_and_cleared_away_by_its_own_run(folder):
    (folder / "30.orbax-checkpoint-tmp").mkdir()
    (folder / "30.orbax-checkpoint-tmp" / "params").mkdir()
    assert finished_steps(str(folder)) == [10, 20]
    assert len(unfinished(str(folder))) == 1
    lines: list[str] = []
    Checkpoints(str(folder), warn=lines.append).start_writing()
    assert len(lines) == 1 and "half-written" in lines[0]
    assert unfinished(str(folder)) == []


def test_a_folder_that_cannot_be_written_is_one_line(trained, tmp_path):
    _, state = trained
    (tmp_path / "file").write_text("")
    with pytest.raises(LmError, match="cannot write"):
        Checkpoints(str(tmp_path / "file" / "checkpoints")).save(1, items_of(state), data={}, meta={})


def test_the_reader_needs_no_jax(trained, folder):
    _, state = trained
    code = (
        "import sys, json; from lm.checkpoint.reader import CheckpointReader as R; r = R(sys.argv[1]);"
        "v = r.read('params', 'layers/mlp/up/kernel');"
        "print(json.dumps([r.items(), len(r.leaves('params')), list(v.shape), str(v.dtype), float(v[1, 2, 3]), "
        "r.json('meta'), 'jax' in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(folder / "20")], capture_output=True, text=True, check=True)
    items, leaves, shape, dtype, value, meta, has_jax = json.loads(out.stdout)
    assert items == ["params", "opt_state"]
    assert leaves == len(jax.tree.leaves(state.params))
    assert (shape, dtype) == ([2, 64, 192], "bfloat16")
    assert value == float(state.params["layers"]["mlp"]["up"]["kernel"][1, 2, 3])
    assert meta.pop("checksums").keys() >= {"params/layers/mlp/up/kernel"} and len(meta.pop("digest")) == 64
    assert meta == {"step": 20}
    assert not has_jax


def test_the_reader_names_what_is_missing(folder):
    with pytest.raises(ConfigError, match="params has no array layers/none"):
        CheckpointReader(str(folder / "20")).read("params", "layers/none")
