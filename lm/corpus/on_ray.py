"""The other executor: a Ray cluster, whose machines all see the work folder."""

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm import storage
from lm.corpus.local import attempt
from lm.corpus.task import Failure, Task
from lm.errors import LmError, UsageError

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
_MAX_TRIES = 3  # of a task whose machine is lost
_AHEAD = 2  # tasks submitted per core of the cluster


class RayExecutor:
    """Runs tasks on the cores of a Ray cluster; a lost machine's tasks are done again on another."""

    def __init__(self, folders: Sequence[str], address: str | None = None):
        """Join a cluster.

        Args:
          folders: those that tasks write in: on an object store, or ones that all machines share.
          address: of the cluster; None: $RAY_ADDRESS, a cluster on this machine, or one of this machine alone.

        Raises:
          UsageError: Ray is not installed, there is no cluster, or a machine of it does not see a folder.
        """
        self._ray = _import_ray()
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            _check_answers(address)
        package = os.path.dirname(os.path.abspath(storage.__file__))  # lm itself goes to the cluster's machines
        options = {"runtime_env": {"py_modules": [package]}, "logging_level": logging.ERROR, "log_to_driver": False}
        try:
            self._ray.init(address=address or "auto", **options)
        except ConnectionError as error:
            if address:
                raise _no_cluster(address, error) from error
            self._ray.init(**options)
        for folder in folders:
            self._check_folder(folder)

    def run(
        self, tasks: Sequence[Task], moved: Callable[[int, int], None]
    ) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """Yield (index, stats or Failure) as tasks end; what goes on inside a task is not told."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=_MAX_TRIES)(attempt)
        waiting = list(range(len(tasks)))[::-1]
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
                while waiting and len(running) < _AHEAD * cores:
                    index = waiting.pop()
                    running[remote.remote(tasks[index])] = index
                ended, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                for reference in ended:
                    index = running.pop(reference)
                    try:
                        yield index, ray.get(reference)
                    except ray.exceptions.RayError as error:
                        yield index, Failure(f"Ray: {str(error).strip().splitlines()[0]}")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()

    def _check_folder(self, folder: str) -> None:
        """Have every machine of the cluster read a file that was written here."""
        if storage.is_remote(folder):
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray, probe = self._ray, storage.join(folder, f".write-{uuid.uuid4().hex}")
        storage.write_atomic(probe, "")
        try:
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            seen = [
                ray.remote(num_cpus=0)(os.path.exists)
                .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                .remote(probe)
                for node in nodes
            ]
            for node, is_there in zip(nodes, ray.get(seen), strict=True):
                if not is_there:
                    raise UsageError(
                        f'the Ray node {node["NodeManagerAddress"]} does not see "{folder}": put --out and --work where '
                        "all nodes see them, gs:// or s3:// or a shared file system."
                    )
        except ray.exceptions.RayError as error:
            raise LmError(f"Ray: {str(error).strip().splitlines()[0]}") from error
        finally:
            storage.remove(probe)


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return  # ray://…, auto
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(f"no Ray cluster at {address}: {error}. Start one with `ray start --head`.")


def _import_ray():
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(
            f"--executor ray needs Ray: {error}. Install it with: pip install -e '.[data,scale-out]'."
        ) from error
    return ray
