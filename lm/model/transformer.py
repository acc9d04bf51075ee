"""The language model: embeddings, a scan over stacked blocks, a head; parameters are a plain dict.

`nn.scan` cannot hold flat `[L, …]` parameters with a static window per layer, so the stack is
the block's `init` under `vmap` and a `lax.scan` over `block.apply` in groups of the window
pattern's period. Pipeline stages and layer-by-layer quantization then need no second tree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import ModelConfig, PrecisionConfig
from lm.extensions import load_extension
from lm.kernels.attention import attention as default_attention
from lm.model.block import Block
from lm.model.layers import Embedding, Linear, Norm, rope_angles, stacked
from lm.model.remat import rematerialized

Params = dict[str, Any]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A decoder-only transformer as pure functions of a parameter dict.

    `attention` and `constrain` are injected by `lm/parallel/`; the defaults run on one device.
    """

    config: ModelConfig
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)
    attention: Callable = default_attention
    constrain: Callable = lambda x, letters: x

    @property
    def dtype(self):
        """Compute type."""
        return jnp.dtype(self.precision.compute)

    @property
    def param_dtype(self):
        """Parameter type (master weights)."""
        return jnp.dtype(self.precision.parameters)

    @property
    def _block(self):
        kind = load_extension("model.block", self.config.block) if ":" in self.config.block else Block
        return kind(self.config, self.param_dtype, self.attention, self.constrain)

    def _embedding(self, rows: int) -> Embedding:
        config = self.config
        return Embedding(
            (rows, config.d_model), "VD", config.embedding_std, self.dtype, self.param_dtype, self.constrain
        )

    @property
    def _final_norm(self) -> Norm:
        return Norm(self.config.norm, self.config.norm_epsilon, self.config.bias, self.param_dtype)

    @property
    def _head(self) -> Linear:
        return Linear(self.config, "BTD,DV->BTV", self.param_dtype, head=True)

    def init(self, key: jax.Array) -> Params:
        """Return fresh parameters; layers are stacked on a leading L axis."""
        config = self.config
        embed_key, position_key, layer_key, norm_key, head_key = jax.random.split(key, 5)
        ids_BT = jnp.zeros((1, 1), jnp.int32)
        x_BTD = jnp.zeros((1, 1, config.d_model), self.dtype)
        call = {**self._context(ids_BT, ids_BT, ids_BT), "window": None, "cache": None, "deterministic": True}
        init = lambda module, key, *args, **kwargs: module.init(key, *args, **kwargs)["params"]  # noqa: E731
        params: Params = {"embed": {"tokens": init(self._embedding(config.vocab_size), embed_key, ids_BT)}}
        if config.positions == "learned":
            params["embed"]["positions"] = init(self._embedding(config.max_positions), position_key, ids_BT)
        layer_keys = jax.random.split(layer_key, config.num_layers)
        params["layers"] = jax.vmap(lambda key: init(self._block, key, x_BTD, **call))(layer_keys)
        params["final_norm"] = init(self._final_norm, norm_key, x_BTD)
        if not config.tie_embeddings:
            params["head"] = init(self._head, head_key, x_BTD)
        return params

    def hidden(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        *,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Return the final hidden states `[B, T, D]` (normed) and the updated cache.

        Args:
          params: from `init`.
          tokens_BT, positions_BT: int32 ids, and positions that restart in each document.
          segment_ids_BT: int32; a token sees tokens of its own segment only; 0 is padding.
          cache: from `init_cache`; tokens are appended at `cache["length"]`.
          dropout_key: None turns dropout off.
        """
        config = self.config
        x_BTD = self._embedding(config.vocab_size).apply({"params": params["embed"]["tokens"]}, tokens_BT)
        if config.positions == "learned":
            table = self._embedding(config.max_positions)
            x_BTD = x_BTD + table.apply({"params": params["embed"]["positions"]}, positions_BT)
        use_dropout = dropout_key is not None and config.dropout > 0
        if use_dropout:
            keep = jax.random.bernoulli(
                jax.random.fold_in(dropout_key, config.num_layers), 1 - config.dropout, x_BTD.shape
            )
            x_BTD = jnp.where(keep, x_BTD / (1 - config.dropout), 0)
        x_BTD = self.constrain(x_BTD, "BTD")

        context, new_lengths = self._context(tokens_BT, positions_BT, segment_ids_BT), {}
        if cache is not None:
            length = cache["length"]
            segments_BS = jax.lax.dynamic_update_slice_in_dim(cache["segment_ids_BS"], segment_ids_BT, length, 1)
            new_lengths = {"length": length + tokens_BT.shape[1], "segment_ids_BS": segments_BS}
        period = len(config.window)
        block = self._block

        def layer(number, x_BTD, layers, own, rngs):
            return block.apply(
                # Sliced here, inside the remat unit: a slice that is kept for the backward pass is a copy.
                {"params": _layer(layers, number) if period > 1 else layers},
                x_BTD,
                **context,
                window=config.window[number],
                cache=own,
                deterministic=not use_dropout,
                rngs=rngs,
            )

        layer = rematerialized(layer, config.remat, sliced=period > 1)

        def group(x_BTD, xs):
            layers, layer_cache, first = xs
            caches = []
            for i in range(period):
                own = (
                    None
                    if cache is None
                    else {**_layer(layer_cache, i), "length": length, "segment_ids_BS": segments_BS}
                )
                rngs = {"dropout": jax.random.fold_in(dropout_key, first + i)} if use_dropout else None
                x_BTD, updated = layer(i, x_BTD, layers, own, rngs)
                caches.append(updated)
            return x_BTD, None if cache is None else jax.tree.map(lambda *a: jnp.stack(a), *caches)

        layer_cache = None if cache is None else stacked(cache["layers"], period)
        first = jnp.arange(0, config.num_layers, period)
        xs = (stacked(params["layers"], period) if period > 1 else params["layers"], layer_cache, first)
        x_BTD, updated = jax.lax.scan(group, x_BTD, xs, unroll=min(config.scan_unroll, config.num_layers // period))
        x_BTD = self._final_norm.apply({"params": params["final_norm"]}, x_BTD)
        if cache is None:
            return x_BTD, None
        layers = jax.tree.map(lambda a: a.reshape((config.num_layers, *a.shape[2:])), updated)
        return x_BTD, {"layers": layers, **new_lengths}

    def _context(self, tokens_BT, positions_BT, segment_ids_BT) -> dict[str, Any]:
        rope = None
        if self.config.positions == "rope":
            rope = rope_angles(positions_BT, self.config.head_dim, self.config.rope_base)
        return {"tokens_BT": tokens_BT, "rope": rope, "segment_ids_BT": segment_ids_BT}

    def head(self, params: Params) -> jax.Array:
        """Return `head_DV` in the parameter type: the head's kernel, or the tied embedding."""
        if self.config.tie_embeddings:
            return params["embed"]["tokens"]["embedding"].T
        return params["head"]["kernel"]

    def logits(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """Return `logits_BTV` in the output type, soft-capped; for a few positions (decoding)."""
        logits_BTV = jnp.einsum(
            "BTD,DV->BTV", hidden_BTD, self.head(params).astype(hidden_BTD.dtype), preferred_element_type=jnp.float32
        )
        cap = self.config.logit_softcap
        if cap is not None:
            logits_BTV = cap * jnp.tanh(logits_BTV / cap)
        return logits_BTV.astype(self.precision.output)

    def init_cache(self, batch: int, capacity: int) -> Cache:
        """Return an empty key/value cache for `capacity` tokens per row; segment 0 marks unused slots."""
        config = self.config
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        return {
            "layers": {"key_BSKH": jnp.zeros(shape, self.dtype), "value_BSKH": jnp.zeros(shape, self.dtype)},
            "segment_ids_BS": jnp.zeros((batch, capacity), jnp.int32),
            "length": jnp.zeros((), jnp.int32),
        }


def _layer(group, number: int):
    """Return one layer's part of a group's stacked arrays."""
    return jax.tree.map(lambda a: a[number], group)
