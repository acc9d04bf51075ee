"""Writing safetensors files one tensor at a time: what must be in memory is one tensor, not the model.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length, a JSON header with each tensor's type,
shape and place, then the bytes. Shapes are known before, so the header is written first.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.errors import LmError
from lm.storage import filesystem, is_remote, join, write_atomic

SHARD_BYTES = 5 * 10**9  # of a file at most, unless one tensor is larger: transformers' own default
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Spec = tuple[str, tuple[int, ...]]  # a tensor's name and shape


def write_sharded(
    folder: str, specs: Sequence[Spec], arrays: Iterable[np.ndarray], dtype: np.dtype, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Write tensors as `model.safetensors`, or as numbered files and their index if they are many.

    Args:
      folder: exists.
      specs: name and shape of each tensor.
      arrays: in the order of `specs`, each taken when the one before is written.
      dtype: that they are stored in (float32, bfloat16 or float16), converted to nearest even.
      shard_bytes: size of a file at most, unless one tensor is larger.

    Returns:
      The names of the files.

    Raises:
      LmError: a file cannot be written.
    """
    shards = _shards(specs, dtype, shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    source = iter(arrays)
    for name, shard in zip(names, shards, strict=True):
        with _writing(join(folder, name)) as file:
            file.write(_header(shard, dtype))
            for tensor, shape in shard:
                array = next(source)
                if array.shape != tuple(shape):
                    raise ValueError(f"{tensor} is {array.shape}, expected {shape}")
                file.write(np.ascontiguousarray(array, dtype).view(np.uint8).data)
                del array  # before the next is made
    if len(shards) == 1:
        return names
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor, _ in shard}
    index = {"metadata": {"total_size": sum(_size(shape, dtype) for _, shape in specs)}, "weight_map": places}
    write_atomic(join(folder, "model.safetensors.index.json"), json.dumps(index, indent=2) + "\n")
    return [*names, "model.safetensors.index.json"]


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _shards(specs: Sequence[Spec], dtype: np.dtype, shard_bytes: int) -> list[list[Spec]]:
    shards: list[list[Spec]] = [[]]
    used = 0
    for spec in specs:
        size = _size(spec[1], dtype)
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += size
    return shards


def _header(shard: Sequence[Spec], dtype: np.dtype) -> bytes:
    entries: dict = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say which framework's
    start = 0
    for name, shape in shard:
        end = start + _size(shape, dtype)
        entries[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text


@contextlib.contextmanager
def _writing(path: str) -> Iterator:
    try:
        with filesystem(path).open(path, "wb") if is_remote(path) else open(path, "wb") as file:
            yield file
    except OSError as error:
        raise LmError(f'cannot write "{path}": {error.strerror or error}.') from error
