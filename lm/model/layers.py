"""The parts that blocks are made of: linear layers, norms, embeddings, rotary positions."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.kernels.linear import linear
from lm.kernels.lookup import lookup
from lm.kernels.norm import norm
from lm.model.initializers import kernel_std, normal


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
    }


class Linear(nn.Module):
    """A matmul against a parameter, `spec` in dimension letters, with an optional bias."""

    config: ModelConfig
    spec: str  # e.g. "BTD,DNH->BTNH"
    param_dtype: jnp.dtype
    residual: bool = False  # writes to the residual stream
    head: bool = False  # the output head: never a bias

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = sizes(self.config)
        inputs, output = self.spec.split("->")
        _, letters = inputs.split(",")
        std = kernel_std(self.config, self.spec, size, residual=self.residual, head=self.head)
        kernel = self.param("kernel", normal(std), tuple(size[c] for c in letters), self.param_dtype)
        out = linear(x, kernel, self.spec)
        if self.config.bias and not self.head:
            shape = tuple(size[c] for c in output if c in letters)
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            out = out + bias.astype(out.dtype).reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        return out


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis, in f32."""

    kind: str
    epsilon: float
    bias: bool
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vector = lambda name, init: self.param(name, init, x.shape[-1:], self.param_dtype).astype(jnp.float32)  # noqa: E731
        scale = vector("scale", nn.initializers.ones)
        centred = self.kind == "layernorm"
        bias = vector("bias", nn.initializers.zeros) if self.bias and centred else None
        return norm(x, scale, bias, centred, self.epsilon)


class Embedding(nn.Module):
    """A table `[V, …]` looked up by id, in the compute type."""

    shape: tuple[int, ...]
    letters: str  # of the shape
    std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    constrain: Callable

    @nn.compact
    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        table = self.param("embedding", normal(self.std), self.shape, self.param_dtype)
        # Gathered whole before the lookup: from a table sharded over D the compiler would make a
        # D-sharded activation and then have to turn it into a batch-sharded one.
        return lookup(table, ids_BT, jnp.dtype(self.dtype), lambda table: self.constrain(table, self.letters))


def rope_angles(positions_BT: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Return (cos, sin) `[B, T, 1, H/2]` in f32 of the rotary embedding (Su et al. 2021)."""
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency.reshape(1, 1, 1, -1)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x_BTNH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the pairs (x[i], x[i + H/2]): the half-split layout of Llama and GPT-NeoX."""
    cos, sin = rope
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)


def stacked(params: Mapping, group: int) -> Mapping:
    """`[L, …]` to `[L / group, group, …]` on every leaf."""
    return jax.tree.map(lambda a: a.reshape((a.shape[0] // group, group, *a.shape[1:])), params)
