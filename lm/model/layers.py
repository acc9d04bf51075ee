"""The parts that blocks are made of: linear layers, norms, embeddings."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig, PrecisionConfig
from lm.kernels.linear import linear
from lm.kernels.norm import norm
from lm.model.initializers import kernel_init, normal, sizes
from lm.model.layout import Layout


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
    """Return a module's parameter, made with this shape.

    In a region (`lm.parallel.local`) it is a device's own part, whose shape `Module.param` would refuse.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, module.precision.parameters)


class Linear(nn.Module):
    """A matmul against a parameter, `spec` in dimension letters; has a bias if `config.bias` names it."""

    config: ModelConfig
    spec: str  # e.g. "BTD,DNH->BTNH"
    precision: PrecisionConfig
    leave: Callable | None = None  # of what writes to the residual stream: from this device's part to the sum

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = sizes(self.config)
        inputs, output = self.spec.split("->")
        _, letters = inputs.split(",")
        init = kernel_init(self.config, letters, residual=self.leave is not None)
        kernel = parameter(self, "kernel", init, tuple(size[c] for c in letters))
        out = linear(x, kernel, self.spec, matmul="default" if letters in ("DV", "DR") else self.precision.matmul)
        if self.leave is not None:
            out = self.leave(out)
        if self.name in self.config.bias:
            shape = tuple(size[c] for c in output if c in letters)
            bias = parameter(self, "bias", nn.initializers.zeros, shape)
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
            return parameter(self, name, init, x.shape[-1:]).astype(jnp.float32)

        offset = 1.0 if config.norm_zero_centred else 0.0
        scale = vector("scale", nn.initializers.zeros if offset else nn.initializers.ones)
        bias = vector("bias", nn.initializers.zeros) if centred and "norm" in config.bias else None
        return norm(x, scale, bias, centred, config.norm_epsilon, offset)


class Embedding(nn.Module):
    """A table looked up by id, in the compute type."""

    config: ModelConfig
    letters: str  # of the table: VD, PD or VKH
    precision: PrecisionConfig
    layout: Layout

    @nn.compact
    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        size = sizes(self.config)
        shape = tuple(size[c] for c in self.letters)
        table = parameter(self, "embedding", normal(self.config.embedding_std), shape)
        return self.layout.lookup(table, ids_BT, jnp.dtype(self.precision.compute), self.letters)


def stacked(params: Mapping, group: int) -> Mapping:
    """`[L, …]` to `[L / group, group, …]` on every leaf."""
    return jax.tree.map(lambda a: a.reshape((a.shape[0] // group, group, *a.shape[1:])), params)
