"""The parts that blocks are made of: linear layers, norms, embeddings."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig, PrecisionConfig
from lm.kernels.linear import linear
from lm.kernels.norm import norm
from lm.model.initializers import kernel_init, normal, sizes


class Linear(nn.Module):
    """A matmul against a parameter, `spec` in dimension letters; has a bias if `config.bias` names it."""

    config: ModelConfig
    spec: str  # e.g. "BTD,DNH->BTNH"
    precision: PrecisionConfig
    residual: bool = False  # writes to the residual stream

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = sizes(self.config)
        inputs, output = self.spec.split("->")
        _, letters = inputs.split(",")
        init = kernel_init(self.config, letters, residual=self.residual)
        kernel = self.param("kernel", init, tuple(size[c] for c in letters), self.precision.parameters)
        out = linear(x, kernel, self.spec, matmul="default" if letters in ("DV", "DR") else self.precision.matmul)
        if self.name in self.config.bias:
            shape = tuple(size[c] for c in output if c in letters)
            bias = self.param("bias", nn.initializers.zeros, shape, self.precision.parameters)
            # In f32, or the bias's gradient would be summed over all tokens in the compute type.
            row = bias.astype(jnp.float32).reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
            out = (out.astype(jnp.float32) + row).astype(out.dtype)
        return out


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis, in f32."""

    config: ModelConfig
    precision: PrecisionConfig
    kind: str | None = None  # None: config.norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, centred = self.config, (self.kind or self.config.norm) == "layernorm"

        def vector(name: str, init: Callable) -> jax.Array:
            return self.param(name, init, x.shape[-1:], self.precision.parameters).astype(jnp.float32)

        offset = 1.0 if config.norm_zero_centred else 0.0
        scale = vector("scale", nn.initializers.zeros if offset else nn.initializers.ones)
        bias = vector("bias", nn.initializers.zeros) if centred and "norm" in config.bias else None
        return norm(x, scale, bias, centred, config.norm_epsilon, offset)


class Embedding(nn.Module):
    """A table `[V, …]` looked up by id, in the compute type."""

    shape: tuple[int, ...]
    letters: str  # of the shape
    std: float
    precision: PrecisionConfig
    lookup: Callable  # of the signature of lm.kernels.lookup.lookup

    @nn.compact
    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        table = self.param("embedding", normal(self.std), self.shape, self.precision.parameters)
        return self.lookup(table, ids_BT, jnp.dtype(self.precision.compute), self.letters)


def stacked(params: Mapping, group: int) -> Mapping:
    """`[L, …]` to `[L / group, group, …]` on every leaf."""
    return jax.tree.map(lambda a: a.reshape((a.shape[0] // group, group, *a.shape[1:])), params)
