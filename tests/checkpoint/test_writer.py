"""Checkpoints on object stores: uploaded whole, published last, and what TensorStore says when nothing answers."""

import shutil
import types

import jax
import jax.numpy as jnp
import pytest

from lm import storage
from lm.checkpoint import kvstore, writer
from lm.checkpoint.layout import finished_steps, unfinished
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints
from lm.errors import DamagedFileError, LmError, UsageError

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3)}


@pytest.fixture
def folder():
    """A folder on fsspec's store in memory, which Orbax and TensorStore do not know."""
    path = "memory://checkpoints-test/run"
    yield path
    storage.filesystem(path).rm("memory://checkpoints-test", recursive=True)


def save(folder: str, step: int) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, {"params": PARAMS}, data={}, meta={"step": step})
    checkpoints.close()


def test_a_checkpoint_is_uploaded_and_its_last_file_publishes_it(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    order = []
    fs = type(storage.filesystem(folder))
    put_file = fs.put_file
    monkeypatch.setattr(fs, "put_file", lambda self, a, b, **o: (order.append(b), put_file(self, a, b, **o))[1])
    save(folder, 8)
    assert finished_steps(folder) == [8]
    assert order[-1].endswith("/8/commit_success.txt") and len(order) > 5
    reader = CheckpointReader(f"{folder}/8")
    assert reader.json("meta")["step"] == 8 and reader.leaves("params") == ["a"]
    assert list(tmp_path.iterdir()) == [], "the copy on this disk is gone"


def test_an_upload_that_fails_is_said_and_is_no_checkpoint(folder, monkeypatch, tmp_path):
    save(folder, 8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(self, path, content, **options):
        raise RuntimeError("An error occurred (SlowDown): reduce your request rate")

    fs = type(storage.filesystem(folder))
    put_file = fs.put_file
    monkeypatch.setattr(
        fs,
        "put_file",
        lambda self, a, b, **o: fail(self, a, b) if b.endswith("_METADATA") else put_file(self, a, b, **o),
    )
    with pytest.raises(LmError, match="SlowDown"):
        save(folder, 16)
    assert finished_steps(folder) == [8]
    assert list(tmp_path.iterdir()) == []


def test_what_was_uploaded_before_an_upload_broke_off_is_unfinished(folder):
    save(folder, 8)
    storage.filesystem(folder).rm_file(f"{folder}/8/{writer.PUBLISHED}")
    assert finished_steps(folder) == [] and unfinished(folder) == [f"{folder}/8"]


def test_an_upload_whose_copy_has_no_room_here_is_refused_before_it_is_written(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=8))
        with pytest.raises(LmError, match=f'copy in "{tmp_path}" needs .* GB, .*TMPDIR'):
            save(folder, 8)
    assert list(tmp_path.iterdir()) == []
    save(folder, 8)
    assert finished_steps(folder) == [8]


def test_several_hosts_are_refused_an_upload_before_the_first_step(monkeypatch):
    """Each writes its parts of the arrays onto its own disk."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="several hosts cannot save"):
        Checkpoints("memory://several/run").start_writing()


class Failing:
    def __init__(self, text: str):
        self._text = text

    def result(self):
        raise ValueError(self._text)


def test_a_server_that_stops_answering_is_not_taken_for_damage(tmp_path):
    save(str(tmp_path), 1)
    reader = CheckpointReader(str(tmp_path / "1"))
    silent = 'ABORTED: Error opening "zarr" driver: All 5 retry attempts failed: CURL error Could not connect [x=1]'
    with pytest.raises(LmError, match="Could not connect") as caught:
        reader.finish("params", "a", Failing(silent))
    assert not isinstance(caught.value, DamagedFileError)
    with pytest.raises(DamagedFileError, match="params/a"):
        reader.finish("params", "a", Failing("DATA_LOSS: Error reading manifest: checksum [x=1]"))


@pytest.mark.peer  # s3fs
def test_tensorstore_goes_where_fsspec_goes(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    base = lambda: kvstore.ocdbt("s3://bucket/run/8/params", "a")["base"]  # noqa: E731
    plain = {"driver": "s3", "bucket": "bucket", "path": "run/8/params/", "aws_credentials": {"type": "environment"}}
    assert base() == plain
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000/")
    assert base() == plain | {"endpoint": "http://localhost:9000", "aws_region": "us-east-1"}
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert base()["aws_region"] == "eu-west-1"
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://localhost:9001", "anon": True})
    assert base()["endpoint"] == "http://localhost:9001" and base()["aws_credentials"] == {"type": "anonymous"}
    assert kvstore.ocdbt("gs://bucket/run/8/params", "a")["base"] == "gs://bucket/run/8/params/"


def test_large_arrays_are_stored_in_chunks_and_no_array_in_slivers(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK", 1 << 14)
    checkpoints = Checkpoints(str(tmp_path))
    params = {"even": jnp.zeros((4, 128, 512)), "prime": jnp.zeros((10_007, 8)), "number": jnp.zeros(())}
    checkpoints.save(1, {"params": params}, data={}, meta={})
    checkpoints.close()
    reader = CheckpointReader(str(tmp_path / "1"))
    shape = reader.open("params", "even").chunk_layout.read_chunk.shape
    assert 4 * shape[0] * shape[1] * shape[2] == 1 << 14
    assert reader.open("params", "prime").chunk_layout.read_chunk.shape == (10_007, 8)
