"""Generation: sampling from a model with a key/value cache."""

from lm.infer.generate import Generator
from lm.infer.sampling import SamplingConfig

__all__ = ["Generator", "SamplingConfig"]
