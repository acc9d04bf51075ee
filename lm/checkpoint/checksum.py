"""Checksums of arrays that any mesh can take: position-keyed sums of the bits, the same in JAX and in numpy.

An array's elements are read as 32-bit words (narrower types widened, 64-bit ones as two words in one more dimension,
the low one first). The word w at index (i_0, i_1, …) adds a to one sum and b to another, all modulo 2^32:

    a = mix(w XOR k_1)    b = mix(a + k_2)    k_n = sum over d of i_d · K_n^(d + 1)

`mix` maps 32 bits onto 32 bits one to one (https://github.com/skeeto/hash-prospector), so a change within one word
changes the first sum for certain, a single flipped bit above all. Any other change, parts that were swapped, moved or
doubled among them, goes unseen with a chance of about 2^-64. Whole numbers add up the same in any order: every
sharding, mesh and number of hosts has the same sums, and devices exchange eight bytes per array.

No JAX here until `tree_checksums` is called.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_KEYS = (0x9E3779B9, 0x85EBCA6B)  # K_1 and K_2, odd
_FACTORS = (0x7FEB352D, 0x846CA68B)  # of `mix`
_SHIFTS = (16, 15, 16)
_HOST = "pinned_host"  # the memory of an offloaded optimizer
_BLOCK = 1 << 16  # words that numpy handles at a time; they and their keys stay in the cache


def array_sums(array: np.ndarray, start: tuple[int, ...] | None = None) -> np.ndarray:
    """Return an array's two sums: uint32 [2]; those of an array's parts add up to the whole's, modulo 2^32.

    Args:
      array: of any type with 8, 16, 32 or 64 bits.
      start: where the array begins, if it is a part of a larger one; None: at index 0 of every dimension.
    """
    start = start or (0,) * array.ndim
    if array.size <= _BLOCK:
        return _block_sums(array, start)
    axis = next(axis for axis, size in enumerate(array.shape) if size > 1)
    rows = max(1, _BLOCK * array.shape[axis] // array.size)
    total = np.zeros(2, np.uint32)
    for first in range(0, array.shape[axis], rows):
        part = array[(*(slice(None),) * axis, slice(first, first + rows))]
        total += array_sums(part, (*start[:axis], start[axis] + first, *start[axis + 1 :]))
    return total


def to_text(sums: np.ndarray) -> str:
    """Return two sums as 16 hexadecimal digits."""
    return f"{int(sums[0]):08x}{int(sums[1]):08x}"


def tree_checksums(items: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksum of every array in some trees, by item and path: `params/layers/mlp/up/kernel`.

    Every device sums up what it holds, in one program that makes no copies; on several hosts all of them take part,
    and each gets the result.

    Args:
      items: name -> tree of `jax.Array` on one mesh, or of numpy arrays.
    """
    from lm import hosts
    from lm.tree import map_with_path

    leaves: dict[str, Any] = {}
    map_with_path(leaves.__setitem__, dict(items))
    place = {path: getattr(leaf, "sharding", None) for path, leaf in leaves.items()}  # None: numpy's
    found = {path: to_text(array_sums(leaves[path])) for path, sharding in place.items() if sharding is None}
    # Those of an offloaded optimizer go through the devices one after the other: all at once may not fit.
    offloaded = [path for path, sharding in place.items() if sharding is not None and sharding.memory_kind == _HOST]
    together = [path for path in leaves if path not in {*found, *offloaded}]
    for paths in filter(None, [together, *([path] for path in offloaded)]):
        sums_N2 = hosts.fetch(_program(tuple(map(place.get, paths)))([leaves[path] for path in paths]))
        found |= {path: to_text(sums) for path, sums in zip(paths, sums_N2, strict=True)}
    return found


def digest(data: Mapping, meta: Mapping) -> str:
    """Return the sha256 of a checkpoint's JSON items in canonical form: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps({"data": data, "meta": meta}, sort_keys=True).encode()).hexdigest()


def _block_sums(array: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    words = np.ascontiguousarray(array).reshape(array.shape)  # the first makes one dimension of none
    if array.dtype.itemsize == 8:
        words, start = words[..., None].view("<u4"), (*start, 0)
    else:
        words = words.view(f"<u{array.dtype.itemsize}").astype(np.uint32)
    a = _mix(np.atleast_1d(words ^ _index_key(words.shape, start, _KEYS[0])))  # numpy warns where scalars overflow
    b = _mix(np.atleast_1d(a + _index_key(words.shape, start, _KEYS[1])))
    return np.array([a.sum(dtype=np.uint32), b.sum(dtype=np.uint32)])


def _index_key(shape: tuple[int, ...], start: tuple[int, ...], base: int) -> np.ndarray:
    key = np.zeros(shape, np.uint32)
    for axis, (size, first, factor) in enumerate(zip(shape, start, _axis_factors(len(shape), base), strict=True)):
        index = np.arange(first, first + size, dtype=np.uint64).astype(np.uint32) * np.uint32(factor)
        key += index.reshape((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
    return key


def _axis_factors(ndim: int, base: int) -> list[int]:
    return [pow(base, axis + 1, 1 << 32) for axis in range(ndim)]


def _mix(words: Any) -> Any:
    """`lowbias32`, on uint32 arrays of numpy or JAX."""
    unsigned = words.dtype.type
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        words = (words ^ (words >> unsigned(shift))) * unsigned(factor)
    return words


@functools.cache
def _program(shardings: tuple):
    """Return the jitted `[array, …] -> sums_N2` of arrays with these shardings."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import NamedSharding, PartitionSpec

    def key(shape, base):
        parts = [
            lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(factor)
            for axis, factor in enumerate(_axis_factors(len(shape), base))
        ]
        return sum(parts, jnp.zeros(shape, jnp.uint32))

    def sums(array, sharding):
        if sharding.memory_kind == _HOST:  # devices compute on their own memory
            array = jax.device_put(array, sharding.with_memory_kind("device"))
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        bits = 8 * array.dtype.itemsize
        words = lax.bitcast_convert_type(array, jnp.uint32 if bits == 64 else f"uint{bits}").astype(jnp.uint32)
        a = _mix(words ^ key(words.shape, _KEYS[0]))
        b = _mix(a + key(words.shape, _KEYS[1]))
        zero = jnp.uint32(0)
        # One reduction of both: it reads the array once, and XLA's CPU backend makes no temporary array for it, as it
        # does for `jnp.sum`.
        add = lambda x, y: (x[0] + y[0], x[1] + y[1])  # noqa: E731
        return jnp.stack(lax.reduce((a, b), (zero, zero), add, tuple(range(words.ndim))))

    mesh = getattr(shardings[0], "mesh", None)
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda arrays: jnp.stack(list(map(sums, arrays, shardings))), out_shardings=everywhere)
