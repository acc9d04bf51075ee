"""A small tree on eight devices, and changing one number of a checkpoint as Orbax itself would write it."""

import pathlib
import resource
import time

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints


def mesh(devices: int = 8):
    return jax.make_mesh((devices,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def state(seed: int = 0, devices: int = 8):
    """Return the items of a checkpoint; with fewer devices the same values on another mesh."""
    draw = np.random.default_rng(seed)
    place = lambda array, *spec: jax.device_put(array, NamedSharding(mesh(devices), PartitionSpec(*spec)))  # noqa: E731
    params = {
        "layers": {"kernel": place(draw.normal(size=(2, 16, 24)).astype(np.float32), None, "a")},
        "scale": place(draw.normal(size=8).astype(np.float32)),
    }
    return {
        "params": params,
        "frozen": {},
        "opt_state": {"mu": jax.tree.map(lambda a: a * 2, params), "count": place(np.int32(seed))},
        "extra": {},
    }


def targets(items):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), items)


def save(checkpoints: Checkpoints, step: int, **meta) -> None:
    checkpoints.save(step, state(step), data={"rows_consumed": step}, meta={"step": step, **meta})


def written(folder: pathlib.Path, *steps: int, **options) -> list[str]:
    """Save checkpoints; return the lines that this said."""
    lines: list[str] = []
    checkpoints = Checkpoints(str(folder), warn=lines.append, **options)
    for step in steps:
        save(checkpoints, step)
    checkpoints.close()
    return lines


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def change_number(step_folder: pathlib.Path, item: str, path: str) -> None:
    """Write another number into an array through TensorStore, so that every file is sound and fits the others."""
    import tensorstore as ts

    store = CheckpointReader(str(step_folder)).open(item, path)
    store = ts.open({**store.spec().to_json(), "open": True}, read=True, write=True).result()
    index = (0,) * len(store.shape)
    store[index].write(store[index].read().result() + 1).result()


class FullDisk:
    """Within the block no file can grow beyond some bytes: `with FullDisk():`, saves fail as on a full disk."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def failure(checkpoints: Checkpoints) -> str:
    """Return what `failure` says, asked as often as a loop would."""
    deadline = time.monotonic() + 60
    while (problem := checkpoints.failure()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return problem
