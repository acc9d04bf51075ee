"""The processes that train one model together, one per host: what each must know of the others.

Everything here is called by all of them, in the same order; with one process it does nothing. What waits goes
through the coordination service's key-value store, which has no time limit of a collective and leaves Python
free to handle signals; `Agreement`, which is asked every step, is a collective among the others of that step.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.errors import LmError, Preempted, UsageError

T = TypeVar("T")

_LEFT = "lm/left/"
_rounds = itertools.count()  # every process counts the same exchanges


def is_first() -> bool:
    """Return whether this is the process that writes the run's folder and talks to the person."""
    return jax.process_index() == 0


def gather(value: str = "") -> list[str]:
    """Return every process's value, in the order of the processes; waits until all have come here.

    Raises:
      LmError: another process left with an error; it is of the kind with that one's exit code.
    """
    if jax.process_count() == 1:
        return [value]
    found = _exchange(f"lm/gather/{next(_rounds)}/", value, watch=True)
    return [found[process] for process in range(jax.process_count())]


def first_alone(function: Callable[[], T]) -> T | None:
    """Run `function` on the first process while the others wait; returns None on them."""
    result = function() if is_first() else None
    gather()
    return result


def first_then_all(function: Callable[[], T]) -> T:
    """Run `function` on every process, the others after the first: on a shared disk they find what it made."""
    result = function() if is_first() else None
    gather()
    return result if is_first() else function()


def leave_together(seconds: float, error: BaseException, exit_code: int) -> bool:
    """Tell the others that this process ends with an error; return whether all of them do, within some seconds.

    They learn it where they wait in `gather`. One that computes finds out by the missing heartbeat.
    """
    if jax.process_count() == 1:
        return True
    reason = json.dumps({"exit_code": exit_code, "message": str(error) or type(error).__name__})
    try:
        return _exchange(_LEFT, reason, watch=False, seconds=seconds) is not None
    except jax.errors.JaxRuntimeError:  # the coordinator is gone
        return False


def _exchange(prefix: str, value: str, *, watch: bool, seconds: float | None = None) -> dict[int, str] | None:
    """Publish a value under a prefix and return all processes' by number; None when the time is over."""
    client = _client()
    client.key_value_set(f"{prefix}{jax.process_index()}", value, allow_overwrite=True)  # one may fail twice
    start, pause = time.monotonic(), 0.002
    while True:
        found = {int(key.rsplit("/", 1)[-1]): text for key, text in client.key_value_dir_get(prefix)}
        if len(found) == jax.process_count():
            return found
        if watch:
            _raise_what_made_others_leave(client)
        if seconds is not None and time.monotonic() - start > seconds:
            return None
        time.sleep(pause)  # in Python, where a signal is handled at once
        pause = min(2 * pause, 0.5)


def _raise_what_made_others_leave(client) -> None:
    for key, text in client.key_value_dir_get(_LEFT):
        left = json.loads(text)
        kinds = {UsageError.exit_code: UsageError, Preempted.exit_code: Preempted}
        raise kinds.get(left["exit_code"], LmError)(f"process {key.rsplit('/', 1)[-1]}: {left['message']}")


def _client():
    from jax._src import distributed  # JAX has no public way to its key-value store (Orbax goes this way too)

    return distributed.global_state.client


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Place host values, the same on every process, whole on every device.

    `jax.device_put` compares them over the network each time if there is more than one process.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(value):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


def fetch(array: jax.Array) -> np.ndarray:
    """Return the value of an array that other processes hold parts of."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


class Agreement:
    """All processes stop after the same step, though a signal reaches each at another time, or only one.

    The wish to stop goes over the devices as one bit beside each step and comes back with the next one's, so
    nothing waits for it: it is there when that step's metrics are.
    """

    def __init__(self, mesh: Mesh):
        self._alone = jax.process_count() == 1
        if self._alone:
            return
        sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        shape = (mesh.size,)
        self._bits = [  # placed once; each process fills its own part
            jax.make_array_from_callback(shape, sharding, lambda _, bit=bit: np.full(1, bit, np.int32))
            for bit in (0, 1)
        ]
        self._any = jax.jit(lambda bits: bits.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None
        # CPU devices share a few threads, and a collective blocks one: two programs at a time can wait for ever.
        self._one_at_a_time = mesh.devices.flat[0].platform == "cpu"

    def __call__(self, wish: str | None, step: Any) -> str | None:
        """Return why to stop after this step, on every process alike, or None.

        Args:
          wish: why this process wants to stop.
          step: an output of this step.
        """
        if self._alone:
            return wish
        if self._one_at_a_time:
            jax.block_until_ready(step)
        before, self._asked = self._asked, self._any(self._bits[wish is not None])
        if self._one_at_a_time:
            jax.block_until_ready(self._asked)
        if before is None or not before.item():
            return None
        return wish or "a signal to another process"
