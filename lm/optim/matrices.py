"""Parameters as stacks of matrices, by their dimension letters."""

import math
from typing import NamedTuple

import jax

from lm.axes import matrix_axes


class Axes(NamedTuple):
    """Which axes of an array number its matrices, and which are a matrix's inputs and outputs."""

    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def kernel_axes(dims: str, *, split_heads: bool = False) -> Axes:
    """Return the axes of a matmul's kernel: `LDNH` is L matrices of D x (N H).

    Args:
      dims: dimension letters of a kernel (`lm.axes.matrix_axes`).
      split_heads: each head is a matrix of its own: `LDNH` is L N matrices of D x H.
    """
    inputs, outputs = matrix_axes(dims)
    if split_heads and "H" in dims:
        inputs, outputs = (tuple(axis for axis in side if dims[axis] not in "NK") for side in (inputs, outputs))
    stack = tuple(axis for axis in range(len(dims)) if axis not in inputs + outputs)
    return Axes(stack, inputs, outputs)


def factored_axes(dims: str) -> Axes | None:
    """Return the two sides of a kernel or an embedding table (rows are ids), or None for norms and biases."""
    if matrix_axes(dims) is not None:
        return kernel_axes(dims)
    row = next((axis for axis, letter in enumerate(dims) if letter in "VP"), None)
    if row is None:
        return None
    return Axes(tuple(range(row)), (row,), tuple(range(row + 1, len(dims))))


def to_matrices(x: jax.Array, axes: Axes) -> jax.Array:
    """Return `[stack, in, out]`."""
    fan_in, fan_out = sides(x.shape, axes)
    return x.transpose(sum(axes, ())).reshape((-1, fan_in, fan_out))


def from_matrices(x_Mio: jax.Array, shape: tuple[int, ...], axes: Axes) -> jax.Array:
    """Undo `to_matrices`."""
    order = sum(axes, ())
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return x_Mio.reshape([shape[axis] for axis in order]).transpose(inverse)


def sides(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """Return the sizes of a matrix's two sides: fan-in, fan-out."""
    return math.prod(shape[axis] for axis in axes.inputs), math.prod(shape[axis] for axis in axes.outputs)
