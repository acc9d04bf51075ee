"""Checkpoints read with numpy and TensorStore alone: lazily, in bounded memory, and compared."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lm import checkpoint as checkpoints
from lm.checkpoint import pieces, restore
from lm.checkpoint.difference import config_difference
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints
from lm.errors import DamagedFileError, UsageError
from tests.train.common import built_step, fake_batch, scalars, small_config

ITEMS = ("params", "frozen", "opt_state", "extra")
PATH = "layers/mlp/up/kernel"


@pytest.fixture(scope="module")
def trained():
    """A state in bf16 whose optimizer has moved, on 8 devices with sharded parameters."""
    config = small_config(devices=8, fsdp=4, **{"optimizer.name": "muon", "precision.parameters": "bfloat16"})
    built = built_step(config)
    state, _ = built.step(built.init(), fake_batch(built.mesh, 0), scalars(built, 0))
    return built, state


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> pathlib.Path:
    """A run's folder with checkpoints of steps 10 and 20; tests must not change it."""
    folder, (_, state) = tmp_path_factory.mktemp("contents") / "run", trained
    writer = Checkpoints(str(folder / "checkpoints"), keep=2)
    for step, scale in ((10, 1), (20, 2)):
        params = jax.tree.map(lambda a, scale=scale: a * scale, state.params)
        items = {name: getattr(state, name) for name in ITEMS} | {"params": params}
        writer.save(step, items, data={"rows_consumed": step * 16}, meta={"step": step})
    writer.close()
    info = {"config": {"model": {"num_layers": 2}}, "fingerprint": "f", "data": {}}
    (folder / "config.json").write_text(json.dumps(info))
    return folder


def value_of(state, path: str) -> np.ndarray:
    node = state.params
    for key in path.split("/"):
        node = node[key]
    return np.asarray(node, np.float32)


def test_a_run_is_its_newest_checkpoint_and_arrays_are_read_when_they_are_indexed(trained, run):
    _, state = trained
    opened = checkpoints.open(str(run))
    assert (opened.step, opened.steps) == (20, [10, 20])
    assert opened.config == {"model": {"num_layers": 2}} and opened.data == {"rows_consumed": 320}
    array = checkpoints.open(str(run), 10).arrays[PATH]
    assert (array.shape, str(array.dtype), array.size) == ((2, 64, 192), "bfloat16", 2 * 64 * 192)
    expected = value_of(state, PATH)
    np.testing.assert_array_equal(array[1, 2:5].astype(np.float32), expected[1, 2:5])
    np.testing.assert_array_equal(np.asarray(array, np.float32), expected)
    assert array.norm() == pytest.approx(np.linalg.norm(expected.astype(np.float64)), rel=1e-12)


@pytest.mark.parametrize("inside", ["checkpoints/10", "checkpoints/10/", "checkpoints"])
def test_a_path_may_be_a_step_or_the_folder_of_the_steps(run, inside):
    opened = checkpoints.open(f"{run}/{inside}")
    assert opened.step == (10 if "10" in inside else 20)
    assert opened.info["fingerprint"] == "f"


def test_a_step_folder_and_another_step_contradict_each_other(run):
    assert checkpoints.open(str(run / "checkpoints" / "10"), 10).step == 10
    with pytest.raises(UsageError, match=r"the checkpoint of step 10; leave out --step 20"):
        checkpoints.open(str(run / "checkpoints" / "10"), 20)


def test_a_step_that_was_copied_alone_opens_without_a_config(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "10", tmp_path / "10")
    opened = checkpoints.open(str(tmp_path / "10"))
    assert opened.step == 10 and opened.config == {} and opened.arrays[PATH].shape == (2, 64, 192)


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(UsageError, match="no run"):
        checkpoints.open(str(tmp_path))
    with pytest.raises(UsageError, match=r"no checkpoint of step 15.*\[10, 20\]"):
        checkpoints.open(str(run), 15)
    with pytest.raises(UsageError, match=f'Did you mean "{PATH}"'):
        checkpoints.open(str(run)).arrays["layers/mlp/upp/kernel"]


def test_the_tree_has_the_shape_of_the_parameters_and_other_items_have_their_name_before_the_path(trained, run):
    _, state = trained
    opened = checkpoints.open(str(run))
    tree = opened.tree()
    shapes = jax.tree.map(lambda a: a.shape, tree)
    assert shapes == jax.tree.map(lambda a: a.shape, state.params)
    assert opened.items() == ["params", "opt_state"]
    others = [path for path in opened.arrays if path.startswith("opt_state/")]
    assert len(others) == len(jax.tree.leaves(state.opt_state)) == opened.totals()["opt_state"]["arrays"]
    sizes = [a.size for a in jax.tree.leaves(state.params)]
    assert opened.totals()["params"] == {"arrays": len(sizes), "elements": sum(sizes), "bytes": 2 * sum(sizes)}


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_line(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / "20" / "params" / "_METADATA").write_text("{")
    lines: list[str] = []
    assert checkpoints.open(str(copy), warn=lines.append).step == 10
    assert len(lines) == 1 and "20" in lines[0]
    with pytest.raises(DamagedFileError):
        checkpoints.open(str(copy), 20)


def test_the_difference_of_two_checkpoints_is_relative_to_the_first(trained, run):
    _, state = trained
    a, b = checkpoints.open(str(run), 10), checkpoints.open(str(run), 20)
    found = checkpoints.difference(a, b)
    assert found["relative"] == pytest.approx(1) and not found["identical"]
    entry = next(e for e in found["arrays"] if e["path"] == PATH)
    assert entry == {"path": PATH, "relative": 1.0, "max_abs": float(np.abs(value_of(state, PATH)).max())}
    assert not (found["shapes"] or found["only_in_a"] or found["only_in_b"] or found["config"])
    same = checkpoints.difference(a, a, "opt_state")
    assert same["identical"] and same["relative"] == same["max_abs"] == 0


def test_the_difference_names_other_shapes_types_arrays_and_fields(tmp_path):
    ones = lambda *shape, dtype=np.float32: jax.numpy.ones(shape, dtype)  # noqa: E731
    trees = {
        "a": {"same": ones(3), "shape": ones(2, 3), "type": ones(4), "gone": ones(1), "nan": ones(2)},
        "b": {
            "same": ones(3),
            "shape": ones(3, 2),
            "type": ones(4, dtype=jax.numpy.bfloat16),
            "new": ones(1),
            "nan": ones(2) * np.nan,
        },
    }
    opened = []
    for name, tree in trees.items():
        writer = Checkpoints(str(tmp_path / name))
        writer.save(1, {"params": tree}, data={}, meta={"step": 1})
        writer.close()
        opened.append(checkpoints.open(str(tmp_path / name / "1")))
    found = checkpoints.difference(*opened)
    entries = {entry["path"]: entry for entry in found["arrays"]}
    assert entries["same"] == {"path": "same", "relative": 0.0, "max_abs": 0.0}
    assert entries["type"]["dtypes"] == ["float32", "bfloat16"] and entries["type"]["max_abs"] == 0
    assert np.isnan(entries["nan"]["max_abs"]) and np.isnan(found["max_abs"]), "NaN is no small difference"
    assert found["shapes"] == [("shape", [2, 3], [3, 2])]
    assert (found["only_in_a"], found["only_in_b"], found["identical"]) == (["gone"], ["new"], False)
    configs = {"model": {"d": 1, "n": 2}, "seed": 0}, {"model": {"d": 1, "n": 3}, "name": "b"}
    assert config_difference(*configs) == {"model.n": (2, 3), "seed": (0, None), "name": (None, "b")}


@pytest.fixture
def under_way(monkeypatch):
    """Record the most bytes that `read_ahead` has under way, as its reads start and finish."""
    seen = {"now": 0, "most": 0, "reads": 0}
    original = pieces.read_ahead

    def recording(reads, limit):
        def started():
            for nbytes, start in reads:
                yield nbytes, lambda nbytes=nbytes, start=start: begin(nbytes, start)

        def begin(nbytes, start):
            seen["now"] += nbytes
            seen["most"] = max(seen["most"], seen["now"])
            seen["reads"] += 1
            finish = start()

            def end():
                result = finish()
                seen["now"] -= nbytes
                return result

            return end

        return original(started(), limit)

    monkeypatch.setattr(pieces, "read_ahead", recording)
    return seen


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 1 MiB arrays in chunks of 64 KiB, and what it holds."""
    from lm.checkpoint import writer

    folder = str(tmp_path_factory.mktemp("large"))
    draw = np.random.default_rng(0)
    params = {name: jax.numpy.asarray(draw.standard_normal((4, 128, 512), np.float32)) for name in "abc"}
    params["small"] = jax.numpy.asarray(3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK", 1 << 16)
        checkpoint = Checkpoints(folder)
        checkpoint.save(1, {"params": params}, data={}, meta={})
        checkpoint.close()
    return f"{folder}/1", params


def test_restoring_has_a_bounded_number_of_bytes_under_way_on_any_sharding(large, under_way):
    path, params = large
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    for divided in (spec(), spec(None, "x"), spec(None, None, "x")):
        under_way.update(now=0, most=0, reads=0)
        sharding = {n: jax.sharding.NamedSharding(mesh, divided if a.ndim else spec()) for n, a in params.items()}
        target = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding[n]) for n, a in params.items()}
        restored = restore.restore_tree(CheckpointReader(path), "params", target, in_flight=200_000)
        for name, value in params.items():
            np.testing.assert_array_equal(restored[name], value)
            assert restored[name].sharding == sharding[name]
        assert under_way["reads"] >= 3 * 16 + 1 and under_way["now"] == 0
        assert 2 * 65536 < under_way["most"] <= 200_000, "several at a time, and not more than fit"


def test_a_norm_needs_a_part_of_the_array_at_a_time(large, under_way, monkeypatch):
    path, params = large
    monkeypatch.setattr(pieces, "IN_FLIGHT", 200_000)
    norm = checkpoints.open(path).arrays["a"].norm()
    assert norm == pytest.approx(np.linalg.norm(np.asarray(params["a"], np.float64)), rel=1e-12)
    assert under_way["reads"] == 16 and under_way["most"] <= 200_000


def test_restored_arrays_are_the_memory_that_was_read_into(large, monkeypatch):
    """On a CPU nothing is copied: the peak is that of the weights."""
    path, _ = large
    buffers: list[int] = []
    original = restore._aligned
    monkeypatch.setattr(restore, "_aligned", lambda *a: (buffers.append((b := original(*a)).ctypes.data), b)[1])
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {n: jax.ShapeDtypeStruct((4, 128, 512), np.float32, sharding=sharding) for n in "abc"}
    target["small"] = jax.ShapeDtypeStruct((), np.float32, sharding=sharding)
    restored = restore.restore_tree(CheckpointReader(path), "params", target)
    assert {restored[n].unsafe_buffer_pointer() for n in "abc"} <= set(buffers)


def test_read_ahead_keeps_order_and_its_limit_and_reads_what_is_larger_alone():
    sizes, now, most = [3, 3, 3, 9, 1, 1, 1, 1, 1], set(), []

    def start(number):
        now.add(number)
        most.append(sum(sizes[n] for n in now))
        return lambda: number

    results = []
    for number in pieces.read_ahead(((size, lambda n=n: start(n)) for n, size in enumerate(sizes)), 6):
        results.append(number)
        now.remove(number)
    assert results == list(range(len(sizes)))
    assert max(m for m in most if m != 9) == 6 and most.count(9) == 1
