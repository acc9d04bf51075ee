"""The target `xpk`: the same jobs as `xpk workload create` on a cluster that xpk made. Checked against xpk 1.16.

xpk renders the JobSet itself. Its defaults (no restart, 30 s of grace) are overridden here; it has no liveness probe,
and it restarts all hosts of a workload when one ends. So a sweep, whose hosts must not disturb each other, is one
workload per host.
"""

from collections.abc import Mapping

from lm.errors import UsageError
from lm.launch import container
from lm.launch.job import Job
from lm.launch.render import Command, Rendering, environment_of

OPTIONS: Mapping[str, str] = {
    "cluster": "that xpk made (needed)",
    "project": "of Google Cloud (default: gcloud's)",
    "zone": "of the cluster (default: gcloud's)",
    "priority": "very-low, low, medium, high or very-high (default: medium)",
}
_GPUS_PER_NODE = 8
_OTHER_HOSTS = {"v5e": ("1x1", "2x2", "2x4"), "v6e": ("2x4",)}  # xpk has them not, or as two hosts of four chips
_UNQUOTABLE = '"\\\n'  # xpk writes commands and variables into YAML as they are


def render(job: Job) -> Rendering:
    """Return a job as xpk's workloads.

    Raises:
      UsageError: the option `cluster` is missing, or xpk cannot serve the topology, the workdir or the environment.
    """
    container.check(job, "xpk cannot hand one over: use --target gke with --option secret=NAME")
    if "cluster" not in job.options:
        raise UsageError("--target xpk needs the cluster's name: --option cluster=NAME.")
    workloads = _workloads(job)
    where = tuple(f"--{name}={job.options[name]}" for name in ("cluster", "project", "zone") if name in job.options)
    first = f"jobset.sigs.k8s.io/jobset-name={workloads[0][0]},batch.kubernetes.io/job-completion-index=0"
    return Rendering(
        files={},
        submit=tuple(
            Command(f"create workload {name}", _create(job, name, environment, where))
            for name, environment in workloads
        ),
        watch=(
            Command("its state", ("xpk", "workload", "list", *where, f"--filter-by-job={job.name}")),
            Command("the first host's log", ("kubectl", "logs", "-f", "--tail=100", "-l", first)),
        ),
        stop=tuple(
            Command(f"delete workload {name}", ("xpk", "workload", "delete", *where, f"--workload={name}"))
            for name, _ in workloads
        ),
        notes=tuple(_notes(job)),
    )


def _workloads(job: Job) -> list[tuple[str, dict[str, str]]]:
    """Return each workload's name and what it has in its environment beyond the job's."""
    accelerator = job.accelerator
    if not job.is_sweep:
        return [(job.name, {})]
    if accelerator.tpu and accelerator.hosts > 1:
        raise UsageError(
            f"--topology {job.topology}: xpk restarts all hosts of a slice when one ends, a sweep's too; "
            "use --target gke, or slices of one host, like 4*v6e:2x2."
        )
    hosts = [f"{copy}-{host}" for copy in range(accelerator.copies) for host in range(accelerator.hosts)]
    if len(hosts) == 1:
        return [(job.name, {"LM_LAUNCH_HOST": "0-0"})]
    return [(f"{job.name}-{number}", {"LM_LAUNCH_HOST": host}) for number, host in enumerate(hosts)]


def _create(job: Job, name: str, environment: Mapping[str, str], where: tuple[str, ...]) -> tuple[str, ...]:
    variables = {"PYTHONUNBUFFERED": "1", **environment}
    if job.accelerator.copies * job.accelerator.hosts == 1:
        variables["LM_NUM_PROCESSES"] = "1"
    variables |= environment_of(job)
    command = container.on_one_line(container.script(job, tuple(_first_lines(job))))
    if bad := [text for text in (command, *variables.values()) if any(mark in text for mark in _UNQUOTABLE)]:
        raise UsageError(f"xpk takes no double quotation mark, backslash or line break in: {bad[0]}")
    capacity = ("--spot",) if job.spot else ()
    if job.reservation:
        capacity += (f"--reservation={job.reservation}",)
    return (
        *("xpk", "workload", "create", *where, f"--workload={name}"),
        *_devices(job),
        *capacity,
        f"--max-restarts={job.max_restarts}",
        "--restart-on-exit-codes=42",
        f"--termination-grace-period-seconds={job.grace_seconds}",
        *((f"--priority={job.options['priority']}",) if "priority" in job.options else ()),
        f"--docker-image={container.image(job)}",
        *(f"--env={variable}={value}" for variable, value in variables.items()),
        f"--command={command}",
    )


def _devices(job: Job) -> tuple[str, ...]:
    accelerator = job.accelerator
    copies = 1 if job.is_sweep else accelerator.copies
    if accelerator.tpu:
        if accelerator.shape in _OTHER_HOSTS.get(accelerator.family, ()):
            raise UsageError(f"--topology {job.topology}: xpk has no slice of {accelerator.hosts} such host; use gke.")
        if copies > 1 and accelerator.hosts == 1:
            raise UsageError(f"--topology {job.topology}: GKE joins only slices that have several hosts each.")
        return f"--tpu-type={accelerator.tpu.type_stem}-{accelerator.shape}", f"--num-slices={copies}"
    if not accelerator.gpu.xpk or accelerator.devices_per_host != _GPUS_PER_NODE:
        raise UsageError(
            f"--topology {job.topology}: xpk serves machines of {_GPUS_PER_NODE} H100 or H200; use --target gke."
        )
    nodes = 1 if job.is_sweep else copies * accelerator.hosts
    return f"--device-type={accelerator.gpu.xpk}", f"--num-nodes={nodes}"


def _first_lines(job: Job) -> list[str]:
    """Return what a host has to work out from the variables that xpk and GKE set."""
    accelerator = job.accelerator
    lines = []
    if not job.is_sweep:
        host = "${MEGASCALE_SLICE_ID:-0}-$JOB_COMPLETION_INDEX" if accelerator.tpu else container.host_of_index(job)
        lines.append(f"export LM_LAUNCH_HOST={host}")
    if accelerator.gpu:
        if not job.is_sweep and accelerator.copies * accelerator.hosts > 1:
            address = "$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT"
            lines.append(f"export LM_COORDINATOR={address} LM_NUM_PROCESSES=$NNODES")
        lines.append("export TMPDIR=/var/tmp")  # xpk mounts a folder of the node over /tmp, in its memory
    return lines


def _notes(job: Job) -> list[str]:
    notes = ["unlike gke, xpk has no liveness probe and passes SIGTERM on up to 5 s late"]
    if job.spot or job.reservation:
        notes.append("xpk itself asks for spot or reserved nodes only where the cluster has node auto-provisioning")
    if job.spot:
        notes.append("a spot node gives its pods 15 s unless its node pool's system configuration has more")
    if job.accelerator.gpu:
        notes.append("xpk starts the GPUDirect daemon; NCCL's plugin for it has to be in the image (--image)")
    notes.append("a workload that has ended stays for 12 hours, and xpk asks before it replaces one: stop it first")
    return notes
