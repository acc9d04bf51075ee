"""Joining the other hosts of a run: who they are, from options, the environment, or JAX's detection.

Options and `LM_COORDINATOR`, `LM_NUM_PROCESSES`, `LM_PROCESS_ID` come first; a Kubernetes index
(`JOB_COMPLETION_INDEX`) stands in for the last. Otherwise JAX finds TPU pods (also several slices, also on GKE),
Slurm steps, Open MPI and JobSets. A process that is alone joins nothing; `LM_NUM_PROCESSES=1` says that it is.
"""

import argparse
import atexit
import dataclasses
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Mapping

from lm.config import ParallelConfig
from lm.errors import LmError, UsageError

CHILD = "LM_SUPERVISED"  # in the environment of a process that `lm.commands.supervisor` watches over
ANNOUNCEMENT = re.compile(r"lm: process (\d+) of (\d+), heartbeat timeout (\d+) s")  # read by the supervisor
_LEAVING_SECONDS = 5.0  # in which all processes meet if all have failed alike

_joined: ParallelConfig | None = None  # once this process is one of several


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hosts of a run as options and environment name them."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the hosts of a run."""
    group = parser.add_argument_group("several hosts (found by themselves on TPU pods, Slurm and JobSet)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="process 0, as all hosts reach it")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many hosts run this command")
    group.add_argument("--process-id", type=int, metavar="I", help="which of them this is: 0 to N - 1")


def named(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Return the hosts that options or environment name; None: neither does.

    Raises:
      UsageError: they are incomplete or contradict each other.
    """
    coordinator = args.coordinator or environment.get("LM_COORDINATOR")
    count = _number(args.num_processes, "LM_NUM_PROCESSES", environment)
    number = _number(args.process_id, "LM_PROCESS_ID", environment)
    if coordinator is None and count is None and number is None:
        return None
    if count == 1:
        return Cluster(coordinator or "", 1, 0)
    if number is None:
        number = _number(None, "JOB_COMPLETION_INDEX", environment)
    values = {"--coordinator": coordinator, "--num-processes": count, "--process-id": number}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing: several hosts need {', '.join(values)}.")
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", coordinator):
        raise UsageError(f"--coordinator {coordinator}: expected HOST:PORT of process 0.")
    if count < 1:
        raise UsageError(f"--num-processes {count}: expected 1 or more.")
    if not 0 <= number < count:
        raise UsageError(f"--process-id {number}: expected 0 to {count - 1} (--num-processes {count}).")
    return Cluster(coordinator, count, number)


def _number(option: int | None, variable: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(variable)
    if option is not None or text is None:
        return option
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{variable}={text}: expected a number.") from error


def may_have_hosts(cluster: Cluster | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process may be one of several, as far as can be told without JAX."""
    if cluster is not None:
        return cluster.num_processes > 1
    on_tpu = importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    is_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    in_step = any(environment.get(name, "1") != "1" for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return in_step or _in_jobset(environment) or bool(on_tpu and not is_cpu)


def _in_jobset(environment: Mapping[str, str]) -> bool:
    return "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment


def join(cluster: Cluster | None, parallel: ParallelConfig) -> None:
    """Join the other processes, if there are any, before JAX has looked for devices.

    SIGTERM stays ours: JAX's own handler is turned off.

    Args:
      cluster: what `named` returned.
      parallel: has the times: `startup_seconds`, `heartbeat_seconds`.

    Raises:
      LmError: process 0's port is taken, or the environment names several hosts, but not how to reach them.
    """
    global _joined
    import jax

    options = dataclasses.asdict(cluster) if cluster else {}
    try:
        if cluster is None and not _detected_several():
            return
        jax.config.update("jax_enable_preemption_service", False)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        _keep_stdout_for_results()
        jax.distributed.initialize(
            options.get("coordinator"),
            options.get("num_processes"),
            options.get("process_id"),
            local_device_ids=_local_devices(cluster, os.environ),
            cluster_detection_method="deactivate" if cluster else None,
            initialization_timeout=parallel.startup_seconds,
            heartbeat_timeout_seconds=parallel.heartbeat_seconds,
            shutdown_timeout_seconds=parallel.heartbeat_seconds,
        )
    except jax.errors.JaxRuntimeError as error:  # a host that does not come is an abort: `supervisor` explains it
        raise LmError(
            f"cannot wait for the other hosts at {cluster.coordinator if cluster else 'the coordinator'} (is another "
            f"process using that port?): {' '.join(str(error).split())[:200]}"
        ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # JAX's detection
        raise LmError(
            f"several hosts, but JAX cannot join them: {' '.join(str(error).split())[:300]} "
            "Give --coordinator, --num-processes and --process-id."
        ) from error
    _joined = parallel
    print(
        f"lm: process {jax.process_index()} of {jax.process_count()}, heartbeat timeout {parallel.heartbeat_seconds} s",
        file=sys.stderr,
        flush=True,
    )


def _detected_several() -> bool:
    """Return whether JAX's detection finds more than one process."""
    # `jax.distributed.initialize` would join a single process too.
    from jax._src.clusters import ClusterEnv, K8sCluster

    for environment in ClusterEnv._cluster_types:
        is_kubernetes = environment is K8sCluster
        if environment.opt_in_only_method or (is_kubernetes and not _in_jobset(os.environ)):
            continue
        if is_kubernetes and importlib.util.find_spec("kubernetes") is None:
            raise UsageError(
                "this is a pod of an indexed Kubernetes job: to train with the others, set LM_COORDINATOR and "
                "LM_NUM_PROCESSES, or install the package kubernetes; to train alone, set LM_NUM_PROCESSES=1."
            )
        if environment.is_env_present():
            return environment.get_process_count() > 1
    return False


def _local_devices(cluster: Cluster | None, environment: Mapping[str, str]) -> list[int] | None:
    """Return [] (all of the host's) where JAX would take one GPU per Slurm task though there is one task per node."""
    one_per_node = environment.get("SLURM_NTASKS") == environment.get("SLURM_STEP_NUM_NODES", "-")
    return [] if cluster is None and one_per_node and "JAX_LOCAL_DEVICE_IDS" not in environment else None


def _keep_stdout_for_results() -> None:
    """Silence what C++ libraries print (gloo does): stdout carries the command's result alone."""
    sys.stdout.flush()
    results = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout = os.fdopen(results, "w")


def leave(error: BaseException) -> None:
    """End this process's part in the run after an error, so that its exit code survives.

    JAX waits at exit for all processes, and if one does not come it aborts those that did. So where not all
    have failed alike, this one goes without that. A peer's death may show first as a failed collective: the
    coordination service is given the time to tell, and it aborts this process.
    """
    if _joined is None:
        return
    import jax

    from lm import hosts

    code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
    failed_device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    seconds = _LEAVING_SECONDS + (_joined.heartbeat_seconds if failed_device else 0)
    if not hosts.leave_together(seconds, error, code):
        atexit.register(_exit_at_once, code)


def _exit_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
