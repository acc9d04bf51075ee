"""Checkpoints: written by Orbax, opened on any mesh, and read without JAX: `lm.checkpoint.open(path)`."""

from lm.checkpoint.contents import Checkpoint, StoredArray, open, read
from lm.checkpoint.difference import difference

__all__ = ["Checkpoint", "StoredArray", "difference", "open", "read"]
