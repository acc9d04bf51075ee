"""The language model: embeddings, a scan over stacked blocks, a head; parameters are a plain dict.

`nn.scan` cannot hold flat `[L, …]` parameters with a static window per layer, so the stack is
the block's `init` under `vmap` and a `lax.scan` over `block.apply` in groups of the layer
pattern's period. Pipeline stages and layer-by-layer quantization then need no second tree.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.config import ModelConfig, PrecisionConfig
from lm.extensions import load_extension
from lm.model.block import Block
from lm.model.layers import Embedding, Linear, Norm, stacked
from lm.model.layout import Layout, scan_layers
from lm.model.rope import rope_table

Params = dict[str, Any]
Cache = dict[str, Any]


class Hidden(NamedTuple):
    """What the blocks give."""

    x_BTD: jax.Array  # final hidden states, normed
    cache: Cache | None
    aux: dict[str, jax.Array]  # `[M]`: the blocks' scalars (see `Block`), summed over the layers, per micro-batch


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A decoder-only transformer as pure functions of a parameter dict.

    `layout` is laid over it by `lm/parallel/`; the default runs on one device.
    """

    config: ModelConfig
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)
    layout: Layout = dataclasses.field(default_factory=Layout)

    @property
    def dtype(self):
        """Compute type."""
        return jnp.dtype(self.precision.compute)

    @property
    def _block(self):
        kind = load_extension("model.block", self.config.block) if ":" in self.config.block else Block
        return kind(self.config, self.precision, self.layout)

    def _embedding(self, letters: str) -> Embedding:
        return Embedding(self.config, letters, self.precision, self.layout)

    @property
    def _final_norm(self) -> Norm:
        return Norm(self.config, self.precision)

    @property
    def _head(self) -> Linear:
        return Linear(self.config, "BTD,DV->BTV", self.precision)

    def init(self, key: jax.Array) -> Params:
        """Return fresh parameters; layers are stacked on a leading L axis."""
        config = self.config
        embed_key, position_key, layer_key, norm_key, head_key = jax.random.split(key, 5)
        ids_BT = jnp.zeros((1, 1), jnp.int32)
        x_BTD = jnp.zeros((1, 1, config.d_model), self.dtype)
        call = {"tokens_BT": ids_BT, "segment_ids_BT": ids_BT, "rope": None, "window": None}
        call |= {"cache": None, "deterministic": True}
        init = lambda module, key, *args, **kwargs: module.init(key, *args, **kwargs)["params"]  # noqa: E731
        params: Params = {"embed": {"tokens": init(self._embedding("VD"), embed_key, ids_BT)}}
        if config.positions == "learned":
            params["embed"]["positions"] = init(self._embedding("PD"), position_key, ids_BT)
        layer_keys = jax.random.split(layer_key, config.num_layers)
        # Parameters depend on shapes alone: what may be a kernel or a region of a mesh does not run under `vmap`.
        passing = Layout(
            attention=lambda q_BTNH, *_, **__: q_BTNH, experts=lambda x_BTD, *_, **__: (x_BTD, jnp.zeros(()))
        )
        block = dataclasses.replace(self, layout=passing)._block
        params["layers"] = jax.vmap(lambda key: init(block, key, x_BTD, **call))(layer_keys)
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
    ) -> Hidden:
        """Return the final hidden states `[B, T, D]`, the updated cache and what the blocks report.

        Under muP the hidden states are multiplied by mup_base_width / D, the readout's multiplier.

        Args:
          params: from `init`.
          tokens_BT, positions_BT: int32 ids, and positions that restart in each document.
          segment_ids_BT: int32; a token sees tokens of its own segment only; 0 is padding.
          cache: from `init_cache`; tokens are appended at `cache["length"]`.
          dropout_key: None turns dropout off.
        """
        use_dropout = dropout_key is not None and self.config.dropout > 0
        dropout_key = dropout_key if use_dropout else None
        x_BTD = self._embed(params["embed"], tokens_BT, positions_BT, dropout_key)
        if cache is not None:
            segments_BS = jax.lax.dynamic_update_slice_in_dim(
                cache["segment_ids_BS"], segment_ids_BT, cache["length"], 1
            )
            cache = {**cache, "segment_ids_BS": segments_BS}
        side = {"tokens_BT": tokens_BT, "positions_BT": positions_BT, "segment_ids_BT": segment_ids_BT}
        layer_cache = None
        if cache is None and self.layout.pipeline is not None:
            blocks = lambda *args: self._blocks(*args)[::2]  # noqa: E731
            x_BTD, aux = self.layout.pipeline(blocks, params["layers"], x_BTD, side, dropout_key)
        else:
            x_BTD, layer_cache, aux = self._blocks(params["layers"], x_BTD, side, 0, dropout_key, cache)
            aux = {name: value[None] for name, value in aux.items()}
        x_BTD = self._final_norm.apply({"params": params["final_norm"]}, x_BTD)
        if self.config.mup_base_width:
            x_BTD = x_BTD * jnp.asarray(self.config.mup_base_width / self.config.d_model, x_BTD.dtype)
        if cache is not None:
            cache = {**cache, "layers": layer_cache, "length": cache["length"] + tokens_BT.shape[1]}
        return Hidden(x_BTD, cache, aux)

    def _embed(self, params, tokens_BT, positions_BT, dropout_key):
        config = self.config
        x_BTD = self._embedding("VD").apply({"params": params["tokens"]}, tokens_BT)
        if config.embedding_scale != 1:
            x_BTD = x_BTD * jnp.asarray(config.embedding_scale, x_BTD.dtype)
        if config.positions == "learned":
            x_BTD = x_BTD + self._embedding("PD").apply({"params": params["positions"]}, positions_BT)
        if dropout_key is not None:
            key = jax.random.fold_in(dropout_key, config.num_layers)
            keep = jax.random.bernoulli(key, 1 - config.dropout, x_BTD.shape)
            x_BTD = jnp.where(keep, x_BTD / (1 - config.dropout), 0)
        return self.layout.constrain(x_BTD, "BTD")

    def _blocks(self, params, x_BTD, side, first_layer, dropout_key, cache=None):
        """Return x after the layers that are stacked in `params`, their caches stacked on L, and what they report, summed.

        `first_layer` is the number of the first of them, a multiple of the period.
        """
        config, period, block = self.config, self.config.period, self._block
        kinds = {(config.per_layer("rope_base", i), config.per_layer("rope_factor", i)) for i in range(period)}
        # Handed through the loops, which have backward passes of their own, and not closed over.
        side = side | {
            "dropout_key": dropout_key,
            "ropes": {kind: rope_table(config, side["positions_BT"], *kind) for kind in sorted(kinds)},
        }

        def layer(number, x_BTD, layers, side, own_cache, rngs):
            return block.apply(
                # Sliced here, inside the remat unit: a slice that is kept for the backward pass is a copy.
                {"params": _layer(layers, number) if period > 1 else layers},
                x_BTD,
                tokens_BT=side["tokens_BT"],
                segment_ids_BT=side["segment_ids_BT"],
                rope=side["ropes"][config.per_layer("rope_base", number), config.per_layer("rope_factor", number)],
                window=config.per_layer("window", number),
                cache=own_cache,
                deterministic=rngs is None,
                rngs=rngs,
            )

        layer = self.layout.remat(layer, config.remat, sliced=period > 1)

        def group(count, x_BTD, layers, xs, side):
            """Apply `count` layers, from a multiple of the period on."""
            caches, first = xs
            out = []
            for i in range(count):
                own_cache = None
                if cache is not None:
                    shared = {"length": cache["length"], "segment_ids_BS": cache["segment_ids_BS"]}
                    own_cache = (_layer(caches, i) if period > 1 else caches) | shared
                key = side["dropout_key"]
                rngs = None if key is None else {"dropout": jax.random.fold_in(key, first + i)}
                x_BTD, *updated = layer(i, x_BTD, layers, side, own_cache, rngs)
                out.append(updated)
            return x_BTD, jax.tree.map(lambda *a: jnp.stack(a), *out)

        # Whole periods in a scan, then the layers that are left over (26 layers in a pattern of 6).
        num_layers = jax.tree.leaves(params)[0].shape[0]
        rest = num_layers % period
        whole = num_layers - rest
        layers, updates = (params, None if cache is None else cache["layers"]), []
        scan = scan_layers if cache is not None else self.layout.scan
        if whole:
            grouped = jax.tree.map(lambda a: a[:whole], layers) if rest else layers
            grouped = tuple(stacked(part, period) for part in grouped) if period > 1 else grouped
            xs = (grouped[1], first_layer + jnp.arange(0, whole, period))
            unroll = min(config.scan_unroll, whole // period)
            x_BTD, update = scan(functools.partial(group, period), x_BTD, grouped[0], xs, side, unroll=unroll)
            updates.append(jax.tree.map(lambda a: a.reshape((whole, *a.shape[2:])), update))
        if rest:
            grouped = tuple(stacked(jax.tree.map(lambda a: a[whole:], part), rest) for part in layers)
            xs = (grouped[1], first_layer + jnp.full(1, whole))
            x_BTD, update = scan(functools.partial(group, rest), x_BTD, grouped[0], xs, side, unroll=1)
            updates.append(jax.tree.map(lambda a: a.reshape((rest, *a.shape[2:])), update))
        layer_cache, aux = jax.tree.map(lambda *a: jnp.concatenate(a), *updates) if updates[1:] else updates[0]
        return x_BTD, layer_cache, {name: jnp.sum(value_L) for name, value_L in aux.items()}

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
