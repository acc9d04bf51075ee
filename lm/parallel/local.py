"""The model as one device runs it: a region over the whole mesh, in which every exchange is written out.

| axis | what a device has | what is exchanged, per layer and pass |
|---|---|---|
| slices, data, fsdp, expert | its rows | nothing; at the end the gradients (`lm.parallel.zero`) |
| tensor | its heads, feed-forward units and vocabulary, its part of the sequence between them | the sequence, twice |
| context | its part of the sequence | keys and values (`ring`, `ulysses`) |
| expert | its experts | tokens to their experts and back (`lm.kernels.experts`) |
| stage | its layers | micro-batches (`pipeline`) |

Tensor parallelism is Megatron's (Shoeybi et al. 2019) with the norms and the residual stream divided along the sequence
(Korthikanti et al. 2022): `enter` gathers it, `leave` sums and scatters it; each is the other's transpose. Left to the
compiler the same layer had 3 times as many exchanges (experiments/LOG.md).

The loss is the same on all devices of `tensor`, so each counts 1 / n of it. A parameter's gradient is then the sum of
the devices' own, over every axis that does not divide it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from lm.axes import BATCH_AXES
from lm.config import Config
from lm.kernels.cross_entropy import cross_entropy
from lm.kernels.experts import experts, spread_experts
from lm.kernels.flash_attention import flash_attention
from lm.kernels.lookup import lookup, lookup_part
from lm.model import Transformer
from lm.model.layout import Layout
from lm.parallel.pipeline import make_pipeline
from lm.parallel.ring import ring_attention
from lm.parallel.ulysses import ulysses_attention
from lm.parallel.zero import Zero


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """A model in the region, its loss, and how its parameters lie on the devices."""

    model: Transformer
    cross_entropy: Callable  # `lm.kernels.cross_entropy.cross_entropy` of this device's tokens, over all the vocabulary
    zero: Zero

    @property
    def mesh(self) -> Mesh:
        return self.zero.mesh

    def objective(self, objective: Callable, params: Any, batch: Any, **options) -> tuple[jax.Array, Any]:
        """Return an objective's loss, as this device's share of it, and its sums; in the region."""
        params = self.zero.gather_outside_layers(params)
        loss, sums = objective(self.model, params, batch, cross_entropy=self.cross_entropy, **options)
        return loss / self.mesh.shape["tensor"], sums


def local_model(
    config: Config,
    mesh: Mesh,
    *,
    micro_batches: int = 1,
    whole_rows: bool = False,
    attention: Callable | None = None,
) -> LocalModel:
    """Return the model of a resolved config in the region (`LocalModel.zero.local`).

    Args:
      config: with its `vocab_size`.
      mesh: the device mesh.
      micro_batches: that flow through a pipeline, where there are stages.
      whole_rows: rows are one document each; attention then takes no segment ids.
      attention: in place of `flash_attention`, over sequences that every device has whole: T must not be divided
        over `context`.
    """
    whole = Transformer(config.model, config.precision)
    params = jax.eval_shape(whole.init, jax.random.key(0))
    zero = Zero(mesh, config.parallel.zero, params, config.precision.compute)
    layout = Layout(attention=attention or flash_attention)
    if mesh.size > 1:
        layout = zero.layout(_layout(config, mesh, micro_batches, attention))
    if whole_rows:
        layout = dataclasses.replace(layout, attention=_of_whole_rows(layout.attention))
    return LocalModel(dataclasses.replace(whole, layout=layout), _cross_entropy(config, mesh), zero)


def _layout(config: Config, mesh: Mesh, micro_batches: int, attention: Callable | None) -> Layout:
    tensor, stages, repeats = mesh.shape["tensor"], mesh.shape["stage"], config.parallel.pipeline_repeats
    summed = tuple(axis for axis in (*BATCH_AXES, "context") if mesh.shape[axis] > 1)
    return Layout(
        attention=_attention(config, mesh, attention),
        experts=functools.partial(spread_experts, axis="expert") if mesh.shape["expert"] > 1 else experts,
        lookup=functools.partial(_lookup, tensor, config.model.vocab_size),
        enter=_enter,
        leave=functools.partial(_leave, tensor),
        sum_over_batch=lambda sums: jax.lax.psum(sums, summed),
        pipeline=None if stages == 1 else make_pipeline(stages, micro_batches=micro_batches, repeats=repeats),
    )


def _cross_entropy(config: Config, mesh: Mesh) -> Callable:
    if mesh.shape["tensor"] == 1:
        return cross_entropy

    def own_tokens(hidden_BTD, head_DV, targets_BT, *args, **options):
        hidden_BTD = _enter(hidden_BTD, targets_BT.shape[1])
        axis = "tensor" if head_DV.shape[1] < config.model.vocab_size else None
        return cross_entropy(hidden_BTD, head_DV, targets_BT, *args, **options, vocab_axis=axis)

    return own_tokens


def _enter(x_BTD: jax.Array, length: int) -> jax.Array:
    """Return all `length` tokens of a sequence that may be divided over `tensor`."""
    return x_BTD if x_BTD.shape[1] == length else jax.lax.all_gather(x_BTD, "tensor", axis=1, tiled=True)


def _leave(tensor: int, y_BTD: jax.Array, length: int) -> jax.Array:
    """Return the sum over `tensor`: of all tokens, or of this device's `length`."""
    if tensor == 1:
        return y_BTD
    if y_BTD.shape[1] == length:
        return jax.lax.psum(y_BTD, "tensor")
    return jax.lax.psum_scatter(y_BTD, "tensor", scatter_dimension=1, tiled=True)


def _lookup(tensor: int, vocab_size: int, table: jax.Array, ids_BT: jax.Array, dtype, letters: str) -> jax.Array:
    """Rows of a table that is whole, or whose V is divided over `tensor`; for the residual stream, divided as that is."""
    length = ids_BT.shape[1]
    divides = tensor > 1 and letters.endswith("D") and length % tensor == 0
    if letters[0] != "V" or len(table) == vocab_size:
        if divides:
            own = length // tensor
            ids_BT = jax.lax.dynamic_slice_in_dim(ids_BT, jax.lax.axis_index("tensor") * own, own, axis=1)
        return lookup(table, ids_BT, dtype, letters)
    rows = lookup_part(table, ids_BT, jax.lax.axis_index("tensor") * len(table), dtype)
    return _leave(tensor, rows, length // tensor if divides else length)


def _attention(config: Config, mesh: Mesh, whole: Callable | None = None) -> Callable:
    """Return attention among this device's heads, over whole sequences; `whole`: as every device has them."""
    kind = mesh.devices.flat[0].device_kind
    attend = whole or functools.partial(flash_attention, device_kind=kind)
    across = {
        "ring": functools.partial(ring_attention, device_kind=kind),
        "ulysses": functools.partial(ulysses_attention, attend),
    }[config.parallel.context_method]
    tensor, num_kv_heads = mesh.shape["tensor"], config.model.num_kv_heads
    group = config.model.num_heads // num_kv_heads

    def attention(q_BTNH, k_BTKH, v_BTKH, *, q_offset, **options):
        if tensor > 1 and k_BTKH.shape[2] == num_kv_heads:
            # Fewer key heads than devices: all are here, and the queries here need one of them.
            N = q_BTNH.shape[2]
            first = jax.lax.axis_index("tensor") * N // group
            k_BTKH, v_BTKH = (jax.lax.dynamic_slice_in_dim(x, first, max(N // group, 1), 2) for x in (k_BTKH, v_BTKH))
        if mesh.shape["context"] > 1 and whole is None:
            return across(q_BTNH, k_BTKH, v_BTKH, **options)
        return attend(q_BTNH, k_BTKH, v_BTKH, q_offset=q_offset, **options)

    return attention


def _of_whole_rows(attention: Callable) -> Callable:
    """Return `attention` without its segment ids: for causal attention over rows that are one document each.

    A row's end may be padding, which the tokens before it do not see anyway. Without ids the blocks to visit are
    known while tracing.
    """

    def whole(*qkv, q_segment_ids, kv_segment_ids, **options):
        del q_segment_ids, kv_segment_ids
        return attention(*qkv, q_segment_ids=None, kv_segment_ids=None, **options)

    return whole
