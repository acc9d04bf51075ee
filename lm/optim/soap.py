"""SOAP (Vyas et al. 2024): Adam in the eigenbases of Shampoo's preconditioners."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.axes import letters
from lm.optim.matrices import Axes, from_matrices, kernel_axes, sides, to_matrices
from lm.optim.state import flatten, unflatten
from lm.tree import map_with_path

_EINSUM = {"precision": jax.lax.Precision.HIGHEST}  # bases that are not orthogonal would shrink the update
_FLOOR = 1e-5  # of a preconditioner's trace: eigenvalues below it are rounding errors, and so are their vectors


class SoapState(NamedTuple):
    """One entry per kernel; the squares only for sides that are rotated, `[L, D, D]` or `[L, N, H, N, H]`."""

    count: jax.Array
    mu: Any  # first moment
    nu: Any  # second moment of the rotated gradient, in the kernel's shape
    left: Any  # running average of G G^T, over the inputs
    right: Any  # of G^T G, over the outputs
    left_basis: Any  # approximate eigenvectors, in columns, of falling eigenvalue
    right_basis: Any


def scale_by_soap(b1, b2, epsilon: float, every: int, max_size: int) -> optax.GradientTransformation:
    """Adam on G' = Q_L^T G Q_R, rotated back, per matrix; for kernels only.

    Q_L and Q_R are eigenvectors of the running averages of G G^T and G^T G: found with `eigh` at
    the first step, then every `every` steps by one power iteration and a QR decomposition
    (the paper's algorithm 4), with the second moment's entries following their eigenvectors.
    The first step only starts the bases and moves nothing, as in the authors' code: in the
    eigenbasis of the very gradient that it rotates, Adam would amplify rounding errors.

    Unlike the authors' code, directions whose eigenvalue is below 1e-5 of the trace are not left to
    rounding errors, which differ from mesh to mesh: they start as a fixed complement of the other
    directions, and a refresh keeps them where they are until gradients reach them.

    Args:
      b1, b2: Adam's; b2 is also the preconditioners'.
      epsilon: added to the root of the second moment.
      every: steps between refreshes.
      max_size: a side that is larger is not rotated.
    """

    def rotated(shape: tuple[int, ...], axes: Axes) -> tuple[bool, bool]:
        fan_in, fan_out = sides(shape, axes)
        return fan_in <= max_size, fan_out <= max_size

    def init(params):
        squares = {"left": {}, "right": {}}
        for path, p in flatten(params).items():
            axes = kernel_axes(letters(path))
            for name, side, on in zip(squares, (axes.inputs, axes.outputs), rotated(p.shape, axes), strict=True):
                if on:
                    shape = tuple(p.shape[axis] for axis in axes.stack + side + side)
                    squares[name][path] = jnp.zeros(shape, p.dtype)
        trees = (params, params, *(unflatten(squares[name]) for name in ("left", "right", "left", "right")))
        return SoapState(jnp.zeros((), jnp.int32), *(jax.tree.map(jnp.zeros_like, tree) for tree in trees))

    def update(grads, state, params=None):
        del params
        count = state.count
        started = count > 0
        stage = jnp.where(count == 0, 1, jnp.where(count % every == 0, 2, 0))
        moments, seconds = flatten(state.mu), flatten(state.nu)
        fields = [flatten(tree) for tree in (state.left, state.right, state.left_basis, state.right_basis)]

        def one(path, g):
            axes = kernel_axes(letters(path))
            left, right, left_basis, right_basis = (
                field[path].reshape((-1, side, side)) if path in field else None
                for field, side in zip(fields, 2 * sides(g.shape, axes), strict=True)
            )
            g_Mio = to_matrices(g, axes)
            m, v_Mio = b1 * moments[path] + (1 - b1) * g, to_matrices(seconds[path], axes)
            v_Mio = b2 * v_Mio + (1 - b2) * jnp.square(_rotate(g_Mio, left_basis, right_basis))
            t = jnp.maximum(count, 1).astype(jnp.float32)
            m_Mio = _rotate(to_matrices(m, axes), left_basis, right_basis) / (1 - b1**t)
            u_Mio = _rotate_back(m_Mio / (jnp.sqrt(v_Mio / (1 - b2**t)) + epsilon), left_basis, right_basis)
            u_Mio, v_Mio = jnp.where(started, u_Mio, 0), jnp.where(started, v_Mio, 0)
            moments[path] = jnp.where(started, m, 0)
            if left is not None:
                left = b2 * left + (1 - b2) * jnp.einsum("Mio,Mjo->Mij", g_Mio, g_Mio, **_EINSUM)
            if right is not None:
                right = b2 * right + (1 - b2) * jnp.einsum("Mio,Mip->Mop", g_Mio, g_Mio, **_EINSUM)
            v_Mio, left_basis, right_basis = jax.lax.switch(
                stage, (_keep, _start, _refresh), v_Mio, left, right, left_basis, right_basis
            )
            seconds[path] = from_matrices(v_Mio, g.shape, axes)
            for field, value in zip(fields, (left, right, left_basis, right_basis), strict=True):
                if path in field:
                    field[path] = value.reshape(field[path].shape)
            return from_matrices(u_Mio, g.shape, axes)

        updates = map_with_path(one, grads)
        mu, nu = (map_with_path(lambda path, _, of=of: of[path], grads) for of in (moments, seconds))
        return updates, SoapState(count + 1, mu, nu, *map(unflatten, fields))

    return optax.GradientTransformation(init, update)


def _decompose(function: Callable[[jax.Array], jax.Array], x_Mij: jax.Array) -> jax.Array:
    """Apply a decomposition to a stack of matrices; on CPU to one at a time.

    jaxlib's LAPACK kernels hand a stack to the thread pool that they run in and wait for it: as many of
    them at once as there are threads wait for one another for ever (two QRs on two cores).
    """
    one_by_one = lambda x_Mij: jax.lax.map(function, x_Mij)  # noqa: E731
    return jax.lax.platform_dependent(x_Mij, cpu=one_by_one, default=function)


def _rotate(x_Mio, left, right):
    x_Mio = x_Mio if left is None else jnp.einsum("Mij,Mio->Mjo", left, x_Mio, **_EINSUM)
    return x_Mio if right is None else jnp.einsum("Mio,Mop->Mip", x_Mio, right, **_EINSUM)


def _rotate_back(x_Mio, left, right):
    x_Mio = x_Mio if left is None else jnp.einsum("Mji,Mio->Mjo", left, x_Mio, **_EINSUM)
    return x_Mio if right is None else jnp.einsum("Mio,Mpo->Mip", x_Mio, right, **_EINSUM)


def _keep(v_Mio, left, right, left_basis, right_basis):
    del left, right
    return v_Mio, left_basis, right_basis


def _start(v_Mio, left, right, left_basis, right_basis):
    del left_basis, right_basis

    def basis(square):
        values, vectors = jnp.linalg.eigh(square)
        known = values > _FLOOR * jnp.sum(values, -1, keepdims=True)
        # Columns of zeros: Householder's QR completes the others to a basis without looking at rounding errors.
        return jnp.linalg.qr((vectors * known[..., None, :])[..., ::-1])[0]

    start = lambda squares: None if squares is None else _decompose(basis, squares)  # noqa: E731
    return v_Mio, start(left), start(right)


def _refresh(v_Mio, left, right, left_basis, right_basis):
    def basis(square, old, v_Mio, axis):
        if square is None:
            return v_Mio, None
        floor = _FLOOR * jnp.trace(square, axis1=1, axis2=2).reshape((-1, 1, 1))
        moved = jnp.einsum("Mij,Mjk->Mik", square, old, **_EINSUM) + floor * old
        order = jnp.argsort(-jnp.einsum("Mik,Mik->Mk", old, moved, **_EINSUM), axis=-1)  # by estimated eigenvalue
        moved = jnp.take_along_axis(moved, order[:, None, :], axis=2)
        v_Mio = jnp.take_along_axis(v_Mio, order[:, :, None] if axis == 1 else order[:, None, :], axis=axis)
        return v_Mio, _decompose(lambda x: jnp.linalg.qr(x)[0], moved)

    v_Mio, left_basis = basis(left, left_basis, v_Mio, 1)
    v_Mio, right_basis = basis(right, right_basis, v_Mio, 2)
    return v_Mio, left_basis, right_basis
