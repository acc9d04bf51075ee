"""The streamed safetensors files: what a reader of the format finds in them."""

import json

import ml_dtypes
import numpy as np
import pytest

from lm.errors import LmError
from lm.interop.safetensors import write_sharded

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones((4,), np.float32),
    "c": np.eye(3, dtype=np.float32),
}
SPECS = [(name, array.shape) for name, array in ARRAYS.items()]


def read(path) -> dict[str, np.ndarray]:
    """The format as its specification says it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    types = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
    assert len(body) == max(entry["data_offsets"][1] for entry in header.values())
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_one_file_holds_all_tensors_in_the_type_asked_for(dtype, tmp_path):
    turned = ARRAYS | {"a": np.asfortranarray(ARRAYS["a"])}
    assert write_sharded(str(tmp_path), SPECS, turned.values(), np.dtype(dtype)) == ["model.safetensors"]
    for name, array in read(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(array, ARRAYS[name].astype(dtype))


def test_many_tensors_are_spread_over_files_that_an_index_lists(tmp_path):
    names = write_sharded(str(tmp_path), SPECS, ARRAYS.values(), np.dtype("float32"), shard_bytes=40)
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == 4 * (6 + 4 + 9)
    for tensor, name in index["weight_map"].items():
        np.testing.assert_array_equal(read(tmp_path / name)[tensor], ARRAYS[tensor])


def test_a_tensor_larger_than_a_file_may_be_is_alone_in_one(tmp_path):
    assert len(write_sharded(str(tmp_path), SPECS, ARRAYS.values(), np.dtype("float32"), shard_bytes=1)) == 4


def test_arrays_are_taken_one_at_a_time(tmp_path):
    taken = []

    def arrays():
        for number, array in enumerate(ARRAYS.values()):
            files = sorted(path.name for path in tmp_path.iterdir())
            taken.append((number, len(files)))
            yield array

    write_sharded(str(tmp_path), SPECS, arrays(), np.dtype("float32"), shard_bytes=1)
    assert taken == [(0, 1), (1, 2), (2, 3)]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(LmError, match="cannot write"):
        write_sharded(str(tmp_path / "absent"), SPECS, ARRAYS.values(), np.dtype("float32"))
