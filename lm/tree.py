"""Trees of parameters as tables over their paths."""

from collections.abc import Callable
from typing import Any

import jax


def path_name(path: tuple) -> str:
    """Return `layers/attention/query/kernel` for a key path; attribute and index keys count too."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_with_path(function: Callable, tree: Any, *rest: Any, is_leaf: Callable | None = None) -> Any:
    """`jax.tree.map` whose function also gets the leaf's path as its first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest, is_leaf=is_leaf
    )
