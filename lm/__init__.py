"""lm: a JAX/Flax language-model codebase, from raw text to a trained and evaluated model."""

__version__ = "0.1.0"
