"""The transformer: Flax Linen modules that know no mesh, and what is counted from their shape."""

from lm.model.transformer import Transformer

__all__ = ["Transformer"]
