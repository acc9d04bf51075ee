"""Where a model meets other devices: what `lm/parallel/` lays over it. The defaults are those of one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lm.kernels.experts import experts
from lm.kernels.flash_attention import flash_attention
from lm.kernels.lookup import lookup
from lm.model.remat import rematerialized


def scan_layers(body: Callable, x_BTD: jax.Array, params: Any, xs: Any, side: Any, *, unroll: int):
    """Return `(x, ys)` of `x, y = body(x, params, xs, side)` in a loop over the leading axis of params and xs."""
    return jax.lax.scan(lambda x, own: body(x, *own, side), x_BTD, (params, xs), unroll=unroll)


def _itself(x: Any, *_: Any, **__: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a `Transformer` and its blocks call.

    In a region (`lm.parallel.local`) a model's arrays are a device's own parts: `enter` and `leave` are where its part
    of a sequence becomes the whole of it for this device's heads and feed-forward units, and back.
    """

    attention: Callable = flash_attention
    experts: Callable = experts
    lookup: Callable = lookup  # which gives what the residual stream has of a sequence, where the table is "VD" or "PD"
    constrain: Callable = _itself  # (x, "BTD") -> x with the mesh's sharding laid over it
    enter: Callable = _itself  # (x_BTD, T) -> all T tokens of it
    leave: Callable = _itself  # (y_BTD, T) -> the sum over the devices that share the heads; of T tokens this device's
    sum_over_batch: Callable = _itself  # of a tree of sums over the tokens here, those over the whole micro-batch
    scan: Callable = scan_layers
    remat: Callable = rematerialized  # of a layer; a layer that nobody takes a gradient of can do without
    pipeline: Callable | None = None  # None: all layers are here
