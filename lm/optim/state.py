"""The arrays that an optimizer keeps: what each one is, from its path.

A leaf's path ends with its parameter's path, and the name before that says what it is of the
parameter: `…/momentum/layers/mlp/up/kernel`. A statistic that is one number per row or per neuron
keeps its reduced axes at size 1, so that its letters are the parameter's.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.axes import PARAMETERS
from lm.errors import ConfigError
from lm.optim.matrices import kernel_axes
from lm.tree import map_with_path, path_name

# What may be kept in bf16 (8 bits of significand): running averages that move by 1 - b1, several per cent, a step.
# Everything else stays f32: a second moment moves by 1 - b2, and at b2 = 0.999 that is less than half a unit in
# bf16's last place, so that it could grow and never shrink again; SOAP's bases must stay orthogonal, and its
# preconditioners and NorMuon's and Adafactor's statistics are second moments; schedule_free's z is an iterate that
# learning rates of 1e-3 move by less than bf16 resolves.
FIRST_MOMENTS = ("mu", "momentum", "trace")

# Square matrices over one side of a kernel: `LDNH` has a left one of L D D and a right one of L N H N H.
_SQUARES = {"left": "inputs", "left_basis": "inputs", "right": "outputs", "right_basis": "outputs"}


def parse_path(path: str) -> tuple[str, str] | None:
    """Return (what it is, parameter's path) of a state leaf, or None where it belongs to no one parameter."""
    parts = path.split("/")
    for start in range(len(parts)):
        parameter = "/".join(parts[start:])
        if parameter in PARAMETERS:
            return parts[start - 1] if start else "", parameter
    return None


def state_letters(path: str) -> str | None:
    """Return the dimension letters of an optimizer's state leaf, or None (a counter: every device holds it whole)."""
    found = parse_path(path)
    if found is None:
        return None
    slot, parameter = found
    dims = PARAMETERS[parameter]
    if slot not in _SQUARES:
        return dims
    axes = kernel_axes(dims)
    side = getattr(axes, _SQUARES[slot])
    return "".join(dims[axis] for axis in axes.stack + side + side)


def flatten(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """Return nested dicts that hold these leaves and nothing else; for none, a node without leaves.

    (Not an empty dict: a checkpoint would write that as an array.)
    """
    if not leaves:
        return optax.EmptyState()
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return tree


def keep_types(transform: optax.GradientTransformation, moments: str) -> optax.GradientTransformation:
    """Keep first moments in the type `moments`, computing in f32, and everything else in the type it began with.

    Traced f32 betas would otherwise promote a bf16 moment, and the second step would compile again.

    Raises:
      ConfigError: from `init`, where bf16 is asked for and there is no first moment to keep in it.
    """

    def moved(tree: Any, dtype) -> Any:
        return map_with_path(lambda path, leaf: leaf.astype(dtype) if _is_first_moment(path) else leaf, tree)

    def init(params):
        state = transform.init(params)
        if moments != "float32" and not any(map(_is_first_moment, flatten(state))):
            raise ConfigError(
                f"config.precision.moments={moments!r}: this optimizer's state has no first moment "
                f"({', '.join(FIRST_MOMENTS)}); use float32."
            )
        return moved(state, moments)

    def update(grads, state, params=None):
        updates, new = transform.update(grads, moved(state, jnp.float32), params)
        return updates, jax.tree.map(_as_type_of, new, state)

    return optax.GradientTransformation(init, update)


def _is_first_moment(path: str) -> bool:
    found = parse_path(path)
    return found is not None and found[0] in FIRST_MOMENTS


def _as_type_of(new: jax.Array, old: jax.Array) -> jax.Array:
    return new if new.dtype == old.dtype else new.astype(old.dtype)


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transform to each layer's parameters alone, and to all that is not stacked together.

    It sees arrays without their L axis, so what it derives from a whole array (a norm, a rank, a
    factored moment) is of one layer. Its state over the layers has a leading L axis, counters too.
    """

    def parts(tree: Any) -> tuple[Any, Any]:
        leaves = flatten(tree)
        stacked = {path for path in leaves if PARAMETERS[path].startswith("L")}
        return tuple(
            unflatten({p: a for p, a in leaves.items() if (p in stacked) == wanted}) for wanted in (True, False)
        )

    def init(params):
        layers, rest = parts(params)
        return {"layer": jax.vmap(transform.init)(layers), "rest": transform.init(rest)}

    def update(grads, state, params=None):
        (layers, rest), (layer_params, rest_params) = parts(grads), parts(params)
        layers, layer_state = jax.vmap(transform.update)(layers, state["layer"], layer_params)
        rest, rest_state = transform.update(rest, state["rest"], rest_params)
        updates = flatten(layers) | flatten(rest)
        return map_with_path(lambda path, _: updates[path], grads), {"layer": layer_state, "rest": rest_state}

    return optax.GradientTransformation(init, update)
