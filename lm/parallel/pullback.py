"""What a backward pass of our own keeps of `jax.vjp`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kept"], meta_fields=["structure", "places"])
@dataclasses.dataclass(frozen=True)
class Pullback:
    """What `jax.vjp` keeps, without the arrays that are at hand in the backward pass too.

    A loop stacks what each of its turns keeps: parameters among it would be a copy of them for each turn.
    """

    kept: list[jax.Array]
    structure: Any
    places: tuple[int | None, ...]  # of each leaf: which of the arrays at hand it is; None: it is kept

    @classmethod
    def without(cls, pullback: Callable, at_hand: Any) -> "Pullback":
        """Return a pullback without the arrays that are, each the very same object, leaves of `at_hand`."""
        leaves, structure = jax.tree.flatten(pullback)
        number = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(at_hand))}
        places = tuple(number.get(id(leaf)) for leaf in leaves)
        return cls([leaf for leaf, place in zip(leaves, places, strict=True) if place is None], structure, places)

    def restored(self, at_hand: Any) -> Callable:
        """Return the pullback; `at_hand` holds equal arrays in the same structure."""
        arrays, kept = jax.tree.leaves(at_hand), iter(self.kept)
        return jax.tree.unflatten(
            self.structure, [next(kept) if place is None else arrays[place] for place in self.places]
        )
