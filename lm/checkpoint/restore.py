"""Reading a checkpoint's arrays onto the devices of any mesh."""

from typing import Any

import jax

from lm.checkpoint.reader import CheckpointReader
from lm.tree import map_with_path


def restore_tree(reader: CheckpointReader, item: str, target: Any) -> Any:
    """Read an item onto the devices: every device gets just its own part of each array.

    Args:
      reader: an open checkpoint.
      item: e.g. `params`, or a part of one: `extra/ema`.
      target: tree of `jax.ShapeDtypeStruct` with shardings, of any mesh.

    Raises:
      DamagedFileError: an array cannot be read.
      ConfigError: the arrays are not the target's: one too many or too few, or of another shape or type.
    """
    item, _, part = item.partition("/")
    inside = f"{part}/" if part else ""
    wanted = {inside + path for path in _paths(target)}
    surplus = {path for path in reader.leaves(item) if path.startswith(inside)} - wanted if wanted else ()
    if surplus:
        raise reader.misfit(f"{item}/{min(surplus)} has no place in it")

    def start(path: str, leaf):
        path = inside + path
        store = reader.open(item, path)
        if tuple(store.shape) != leaf.shape or store.dtype.numpy_dtype != leaf.dtype:
            raise reader.misfit(
                f"{item}/{path} is {store.dtype.name}{list(store.shape)}, expected {leaf.dtype}{list(leaf.shape)}"
            )
        # One read per distinct part, all under way at once; replicas share it.
        parts = {
            _key(index, leaf.shape): index
            for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        }
        return leaf, {key: store[index].read() for key, index in parts.items()}

    def finish(path: str, started):
        leaf, futures = started
        parts = {key: reader.finish(item, inside + path, future) for key, future in futures.items()}
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: parts[_key(index, leaf.shape)])

    started = map_with_path(start, target)
    is_started = lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], jax.ShapeDtypeStruct)  # noqa: E731
    return map_with_path(finish, started, is_leaf=is_started)


def _paths(tree: Any) -> set[str]:
    paths = set()
    map_with_path(lambda path, leaf: paths.add(path), tree)
    return paths


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
