"""ZeRO over the `fsdp` axis, replicas over the other batch axes (HSDP), in the region in which gradients are made.

In the region (`lm.parallel.local`) a gradient is that of a device's own tokens until it is reduced here. Under plain
`jit` stages 1 and 2 are one program that reduces every micro-batch.

| stage | parameters | gradients | reduced | optimizer state |
|---|---|---|---|---|
| 0 | whole | whole | once per step (all-reduce) | whole |
| 1 | whole | whole | once per step (reduce-scatter) | 1/n |
| 2 | whole | 1/n | every micro-batch (reduce-scatter) | 1/n |
| 3 | 1/n | 1/n | every layer of every micro-batch | 1/n |

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm.axes import PARAMETERS, SHARDED_AXES, optimizer_axes, parameter_axes, partition
from lm.model.layout import Layout
from lm.parallel.mesh import parameter_shardings
from lm.parallel.prefetch import prefetched_scan
from lm.parallel.region import region
from lm.tree import map_with_path

_IN_F32 = ("layers/experts/router/kernel",)  # whatever the compute type


class Zero:
    """How one replica's parameters and gradients lie on the devices of `fsdp`.

    Args:
      mesh: the device mesh.
      stage: of ZeRO, 0 to 3.
      params: the model's parameters, or their shapes.
      compute: the compute type; parameters that are sharded are gathered in it, which halves what is sent.
    """

    def __init__(self, mesh: Mesh, stage: int, params: Any, compute: str):
        self.mesh, self.stage, self._compute = mesh, stage, compute
        (self._axis,) = SHARDED_AXES["D"]
        self._place: dict[str, int | None] = {}  # path -> the dimension that is sharded over fsdp, if one is
        self._split: dict[str, set[str]] = {}  # path -> other axes that divide it

        def look(path: str, leaf) -> None:
            spec = partition(PARAMETERS[path], leaf.shape, SHARDED_AXES, dict(mesh.shape))
            places = [i for i, axes in enumerate(spec) if self._axis in (axes or ())]
            self._place[path] = places[0] if places else None
            self._split[path] = {axis for axes in spec for axis in axes or ()} - {self._axis}

        map_with_path(look, params)
        self.parameter_specs = self._specs(params, parameter_axes(stage))
        self.gradient_specs = self._specs(params, optimizer_axes(stage))  # once reduced: as the optimizer takes them

    def _specs(self, params: Any, table) -> Any:
        return jax.tree.map(lambda sharding: sharding.spec, parameter_shardings(self.mesh, params, table))

    def local(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Return `function` of local arrays in the region over the whole mesh."""
        return region(self.mesh, function, in_specs, out_specs) if self.mesh.size > 1 else function

    def layout(self, layout: Layout) -> Layout:
        """Return the layout with the loop over layers that gathers each layer's parameters, one ahead."""
        if not self._gathers:
            return layout
        scan = partial(prefetched_scan, gather=self._gather_layer, scatter=self._scatter_layer)
        return dataclasses.replace(layout, scan=scan)

    @property
    def _gathers(self) -> bool:
        return self.stage == 3 and self.mesh.shape[self._axis] > 1

    def gather_outside_layers(self, params: Any) -> Any:
        """Return the parameters with all but the layers' whole over `fsdp`, in the region.

        Their gradients come back sharded (reduce-scatter).
        """
        if not self._gathers:
            return params
        rest = {name: part for name, part in params.items() if name != "layers"}
        return params | map_with_path(self._gather_leaf, rest)

    def reduce_micro_batch(self, grads: Any) -> Any:
        """Return one micro-batch's gradients as they are accumulated: at stage 2, scattered over `fsdp`."""
        return map_with_path(self._scattered, grads) if self.stage == 2 else grads

    def reduce(self, grads: Any) -> Any:
        """Return the sum of accumulated gradients over the devices, laid out as `gradient_specs`."""

        def one(path: str, grad: jax.Array) -> jax.Array:
            done = set(self._split[path])
            if self.stage >= 1 and self._place[path] is not None:
                done.add(self._axis)
                if self.stage == 1:
                    grad = self._scattered(path, grad)
            return jax.lax.psum(grad, tuple(axis for axis in self._axes() if axis not in done))

        return map_with_path(one, grads)

    def sum(self, tree: Any) -> Any:
        """Return sums over all tokens of sums over this device's, which are the same on all devices of `tensor`."""
        return jax.lax.psum(tree, self._axes("tensor"))

    def token_key(self, key: jax.Array, length: int) -> jax.Array:
        """Return a random key of the tokens that this device has of the residual stream; sequences have `length`.

        The devices of `tensor` have parts of a sequence that divides by them, else all of it.
        """
        divides = length % self.mesh.shape["tensor"] == 0
        for axis in self._axes(*(() if divides else ("tensor",))):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return key

    def _axes(self, *without: str) -> tuple[str, ...]:
        return tuple(axis for axis, size in self.mesh.shape.items() if size > 1 and axis not in without)

    def _scattered(self, path: str, grad: jax.Array) -> jax.Array:
        place = self._place[path]
        return grad if place is None else _scatter(grad, self._axis, place)

    def _gather_leaf(self, path: str, leaf: jax.Array) -> jax.Array:
        place = self._place[path]
        if place is None:
            return leaf
        dtype = leaf.dtype if path in _IN_F32 else jnp.dtype(self._compute)
        return _gather(leaf, self._axis, place - _dropped(path, leaf), dtype)

    def _gather_layer(self, shards: Any) -> Any:
        return map_with_path(lambda path, leaf: self._gather_leaf(f"layers/{path}", leaf), shards)

    def _scatter_layer(self, grads: Any, shards: Any) -> Any:
        def one(path: str, grad: jax.Array, shard: jax.Array) -> jax.Array:
            place = self._place[f"layers/{path}"]
            if place is not None:
                grad = _scatter(grad, self._axis, place - _dropped(f"layers/{path}", shard))
            return grad.astype(shard.dtype)

        return map_with_path(one, grads, shards)


def _dropped(path: str, leaf: jax.Array) -> int:
    """Return how many of the path's leading dimensions (L) a layer's slice has lost."""
    return len(PARAMETERS[path]) - leaf.ndim


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(shard: jax.Array, axis: str, place: int, dtype) -> jax.Array:
    return jax.lax.all_gather(shard.astype(dtype), axis, axis=place, tiled=True)


def _gather_fwd(shard, axis, place, dtype):
    return _gather(shard, axis, place, dtype), jnp.zeros((), shard.dtype)


def _gather_bwd(axis, place, dtype, like, grad):
    return (_scatter(grad, axis, place).astype(like.dtype),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def _scatter(grad: jax.Array, axis: str, place: int) -> jax.Array:
    """Return this device's part of the gradients' sum, added up in f32.

    The barrier keeps XLA from adding up whole gradients over the micro-batches and scattering their sum: fewer
    exchanges, and a whole gradient in memory.
    """
    part = jax.lax.psum_scatter(grad.astype(jnp.float32), axis, scatter_dimension=place, tiled=True)
    return jax.lax.optimization_barrier(part)
