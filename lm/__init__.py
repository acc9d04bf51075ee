"""lm: a JAX/Flax language-model codebase, from raw text to a trained and evaluated model.

In a notebook:

    import lm

    model = lm.open("runs/tiny")  # or one step, runs/tiny/checkpoints/400; local or on an object store
    model.generate("def main(", max_new_tokens=64, temperature=0.7)
    model.loss("import os\\n")["bits_per_byte"]
    model.logits(model.tokenizer.encode_document("import os"))  # f32 [T, V]

    checkpoint = lm.checkpoint.open("runs/tiny")  # numpy and TensorStore alone, no JAX
    checkpoint.arrays["layers/mlp/up/kernel"][0]

Importing `lm` imports nothing else.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["open"]


def open(path: str, step: int | str | None = None, weights: str | None = None):
    """Open a trained model on whatever devices there are, whatever mesh wrote it.

    Args:
      path: a run's folder or the folder of one step, local or on an object store.
      step: or `best`, by its validation; None: the newest checkpoint that can be read.
      weights: `params`, or `ema`: their moving average; None: `ema` if the run keeps one.

    Returns:
      a `lm.commands.opened.OpenedRun`, with `logits(ids)`, `generate(prompt)`, `loss(text)`, `config`, `params` and
      `tokenizer`.

    Raises:
      UsageError: no run, no checkpoint, not that step, or no moving average.
      DamagedFileError: the checkpoint cannot be read.
    """
    from lm.commands.opened import open_run

    return open_run(path, step, weights=weights)


def __getattr__(name: str):
    """Import `lm.checkpoint` and the other rooms where they are first used."""
    if name.startswith("_"):
        raise AttributeError(f"module 'lm' has no attribute {name!r}")
    try:
        return importlib.import_module(f"lm.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"lm.{name}":
            raise
        raise AttributeError(f"module 'lm' has no attribute {name!r}") from None
