"""A checkpoint as a folder that `transformers` loads: weights, config, tokenizer. Numpy and TensorStore, no JAX."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lm.checkpoint.layout import WEIGHTS
from lm.checkpoint.reader import CheckpointReader
from lm.config import Config
from lm.errors import ConfigError
from lm.interop.families import config_json, family_of
from lm.interop.names import from_parameters, tensors
from lm.interop.safetensors import SHARD_BYTES, write_sharded
from lm.interop.tokenizer import dump, tokenizer_config_json, tokenizer_json
from lm.storage import join, write_atomic
from lm.tokenizer import Tokenizer


def export(
    reader: CheckpointReader,
    config: Config,
    tokenizer: Tokenizer,
    folder: str,
    *,
    weights: str = "params",
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a checkpoint in Hugging Face's format; config.json, last, makes the folder whole.

    The vocabulary keeps its padding, which is part of the softmax; generation_config.json bars the ids without a token
    from being generated. In memory is what one tensor of theirs needs of ours, twice while it is read: one stacked array
    over all layers (GPT-2: three).

    Args:
      reader: the open checkpoint.
      config: the run's, resolved.
      tokenizer: the run's.
      folder: exists; files in it are overwritten.
      weights: `params`, or `ema`, the moving average.
      dtype: `float32`, `bfloat16` or `float16`; None: as the parameters are stored.
      shard_bytes: size of a weights file at most.
      progress: called with the tensors written and how many there are.

    Returns:
      What was written: `architecture`, `dtype`, `parameters`, `vocab_size`, `tokenizer_vocab_size`, `files`.

    Raises:
      ConfigError: no family of Hugging Face's expresses the model; names the field.
      DamagedFileError: the checkpoint cannot be read.
      LmError: a file cannot be written.
    """
    model = config.model
    family = family_of(model)
    item, _, part = WEIGHTS[weights].partition("/")
    inside = f"{part}/" if part else ""
    stores = {
        path.removeprefix(inside): reader.open(item, path) for path in reader.leaves(item) if path.startswith(inside)
    }
    if not stores:
        raise reader.misfit(f"{item} has no {inside or 'arrays'}")
    shapes = {path: tuple(store.shape) for path, store in stores.items()}
    zeros = family.zero_biases(model)
    try:
        table = tensors(family.names, shapes, zeros)
    except KeyError as error:
        raise ConfigError(f"{family.architecture} has no place for the parameter {error.args[0]}.") from error
    dtype, max_positions = dtype or next(iter(stores.values())).dtype.name, _max_positions(config)
    tokenizer_files = {  # first: it may be refused
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config_json(max_positions),
    }

    def read(path: str) -> np.ndarray:
        return reader.read(item, inside + path)

    def arrays():
        done = 0
        for array in from_parameters(table, read, zeros):
            yield array
            del array  # before the next is read
            progress(done := done + 1, len(table))

    specs = [(tensor.name, tensor.shape) for tensor in table]
    files = write_sharded(folder, specs, arrays(), _numpy_dtype(dtype), shard_bytes)
    padding = list(range(tokenizer.vocab_size, model.vocab_size))
    eot = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_id)
    written = {
        **tokenizer_files,
        "generation_config.json": {**eot, **({"suppress_tokens": padding} if padding else {})},
        "config.json": config_json(family, model, max_positions=max_positions, eot_id=tokenizer.eot_id, dtype=dtype),
    }
    for name, content in written.items():
        write_atomic(join(folder, name), dump(content))
    return {
        "architecture": family.architecture,
        "dtype": dtype,
        "parameters": sum(int(np.prod(tensor.shape)) for tensor in table),
        "vocab_size": model.vocab_size,
        "tokenizer_vocab_size": tokenizer.vocab_size,
        "files": [*files, *written],
    }


def _max_positions(config: Config) -> int:
    """Return the tokens that the model saw at a time; learned positions end where their table does."""
    if config.model.positions == "learned":
        return config.model.max_positions
    return max(length for _, _, length in config.data.schedule)


def _numpy_dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
