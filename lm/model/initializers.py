"""How each parameter starts, from its dimension letters.

Fans are those of one matmul: of `LDNH`, fan-in D and fan-out N H, whatever is stacked. A default
initializer on the stacked or split-head array would take them from the array's shape and be wrong by
the number of heads or layers. Standard deviations of kernels:

- `normal`: `embedding_std` (0.02: BERT, Llama).
- `gpt2`: the same; kernels that write to the residual stream divided by sqrt(2 L) (Radford et al. 2019).
- `fan_in`: 1 / sqrt(fan-in) (LeCun et al. 1998), residual kernels divided by sqrt(2 L).
- `zero_out`: as `fan_in`, with residual kernels and an untied head at zero, so that every block
  starts as the identity.
- `xavier`: gain * sqrt(2 / (fan-in + fan-out)) (Glorot and Bengio 2010).
- `kaiming_in`, `kaiming_out`: gain / sqrt(fan) (He et al. 2015); the gain is sqrt(2) for the
  feed-forward's `down`, whose input is an activation, and 1 elsewhere, or `init_gain` everywhere.
- `mup`: 1 / sqrt(fan-in) inside the blocks; an untied head 1 / sqrt(mup_base_width), the same at every
  width, because the logits are multiplied by mup_base_width / D (Yang et al. 2022, table 8); a router, which has
  no multiplier, sqrt(mup_base_width) / D.
- `spectral`: min(1, sqrt(fan-out / fan-in)) / sqrt(fan-in), so that every kernel's spectral norm is
  about sqrt(fan-out / fan-in) (Yang, Simon and Bernstein 2023), for Muon's spectral form.

Embeddings have `embedding_std` and are normal; norms start as the identity and biases at zero.
`init_distribution` draws the kernels: the standard deviation is that of the formula for each of them
(a normal cut at two standard deviations is widened by the 12 % that the cut takes).
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lm.axes import matrix_axes
from lm.config import ModelConfig

_CUT = 2.0  # standard deviations kept by a truncated normal
_CUT_STD = 0.8796256610342398  # what they leave of the deviation


def sizes(config: ModelConfig) -> dict[str, int]:
    """Return the size of each dimension letter of the model's parameters."""
    return {
        "L": config.num_layers,
        "D": config.d_model,
        "F": config.d_ff,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "V": config.vocab_size,
        "P": config.max_positions,
        "E": config.num_experts,
        "R": config.num_experts,
    }


def fans(dims: str, size: Mapping[str, int]) -> tuple[int, int]:
    """Return (fan-in, fan-out) of a kernel's letters, of one layer and one expert."""
    return tuple(math.prod(size[dims[axis]] for axis in axes) for axes in matrix_axes(dims))


def kernel_std(config: ModelConfig, dims: str, *, residual: bool = False) -> float:
    """Return the standard deviation that a kernel is drawn with; 0 means zeros.

    Args:
      config: with `vocab_size`.
      dims: the kernel's letters; `DV` is the head.
      residual: it writes to the residual stream.
    """
    fan_in, fan_out = fans(dims, sizes(config))
    depth = math.sqrt(2 * config.num_layers) if residual else 1.0
    after_activation = dims.endswith("FD")
    match config.initializer:
        case "normal":
            return config.embedding_std
        case "gpt2":
            return config.embedding_std / depth
        case "fan_in":
            return 1 / math.sqrt(fan_in) / depth
        case "zero_out":
            return 0.0 if residual or dims == "DV" else 1 / math.sqrt(fan_in)
        case "xavier":
            return (config.init_gain or 1.0) * math.sqrt(2 / (fan_in + fan_out))
        case "kaiming_in" | "kaiming_out":
            gain = config.init_gain or (math.sqrt(2) if after_activation else 1.0)
            return gain / math.sqrt(fan_in if config.initializer == "kaiming_in" else fan_out)
        case "mup":
            base = config.mup_base_width
            return {"DV": base**-0.5, "DR": base**0.5 / fan_in}.get(dims, fan_in**-0.5)
        case "spectral":
            return min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
    raise ValueError(f"initializer {config.initializer!r}")


def kernel_init(config: ModelConfig, dims: str, *, residual: bool = False) -> Callable:
    """Return the Flax initializer of a kernel."""
    return _draw(config.init_distribution, kernel_std(config, dims, residual=residual))


def normal(std: float) -> Callable:
    """Return a Flax initializer: normal with this standard deviation."""
    return _draw("normal", std)


def _draw(distribution: str, std: float) -> Callable:
    def init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        if std == 0:
            return jnp.zeros(shape, dtype)
        if distribution == "uniform":
            unit = jax.random.uniform(key, shape, jnp.float32, -math.sqrt(3), math.sqrt(3))
        elif distribution == "truncated_normal":
            unit = jax.random.truncated_normal(key, -_CUT, _CUT, shape, jnp.float32) / _CUT_STD
        else:
            unit = jax.random.normal(key, shape, jnp.float32)
        return (std * unit).astype(dtype)

    return init
