"""How each parameter starts, from its dimension letters.

Fans are taken from the matmul's letters, per layer: the fan-in of `BTD,DNH->BTNH` is D. A
default initializer on the stacked or split-head array would take them from the array's shape
and be wrong by the number of heads or layers.

- `gpt2`: normal with standard deviation `embedding_std` (0.02) for every kernel and embedding;
  kernels that write to the residual stream are divided by sqrt(2 L) (Radford et al. 2019).
- `fan_in`: normal with standard deviation 1 / sqrt(fan-in) (LeCun et al. 1998), residual kernels
  divided by sqrt(2 L), embeddings with `embedding_std`.
- `zero_out`: as `fan_in`, with residual kernels and an untied head at zero, so that every block
  starts as the identity.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lm.config import ModelConfig


def fan_in(spec: str, sizes: Mapping[str, int]) -> int:
    """Return the product of the contracted dimensions of a matmul such as `BTD,DNH->BTNH`."""
    inputs, output = spec.split("->")
    _, kernel = inputs.split(",")
    return math.prod(sizes[letter] for letter in kernel if letter not in output)


def kernel_std(
    config: ModelConfig, spec: str, sizes: Mapping[str, int], *, residual: bool, head: bool = False
) -> float:
    """Return the standard deviation that a kernel is drawn with; 0 means zeros."""
    if config.initializer == "zero_out" and (residual or head):
        return 0.0
    std = config.embedding_std if config.initializer == "gpt2" else 1 / math.sqrt(fan_in(spec, sizes))
    return std / math.sqrt(2 * config.num_layers) if residual else std


def normal(std: float) -> Callable:
    """Return a Flax initializer: normal with this standard deviation, or zeros."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        if std == 0:
            return jnp.zeros(shape, dtype)
        return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init
