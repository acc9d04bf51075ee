"""TPU VMs through gcloud's queued resources: the commands, and the script that runs on every host.

`lm.launch.tpu_vm_driver` runs them in the order that the resource's state asks for.
"""

import dataclasses
import shlex
from collections.abc import Mapping

from lm.errors import UsageError
from lm.launch import shell
from lm.launch.job import Job
from lm.launch.render import CODE, Command, Rendering, environment_of, worker_command
from lm.storage import is_remote

OPTIONS: Mapping[str, str] = {
    "zone": "where, like us-central2-b (needed)",
    "project": "the cloud project (default: gcloud's own)",
    "runtime": "the TPU VM's software version (default: the family's usual one)",
    "network": "the network of the VMs",
    "subnetwork": "the subnetwork of the VMs",
    "internal_ips": "true: no external addresses; installing then needs Cloud NAT, ssh needs a way in",
    "iap": "true: ssh through the Identity-Aware Proxy",
    "autocheckpoint": "false: hosts are not told before a maintenance (for a generation that cannot)",
    "service_account": "whose rights the VMs have (default: Compute Engine's)",
    "python": "the interpreter on the VMs, with an install step of your own (default: python)",
}
SCRIPT = "run.sh"
LOG = "run.log"  # of the script, in the home directory of each host
_TPUS = ("gcloud", "alpha", "compute", "tpus")  # only alpha knows --autocheckpoint-enabled


@dataclasses.dataclass(frozen=True)
class Resource:
    """One queued resource: asked for, granted, taken away and given back as a whole."""

    name: str
    nodes: Mapping[int, str]  # slice -> its TPU's name


def resources(job: Job) -> tuple[Resource, ...]:
    """Return what the job asks for: slices that train together as one, those of a sweep each for itself."""
    slices = {number: f"{job.name}-{number}" for number in range(job.accelerator.copies)}
    if len(slices) == 1:
        return (Resource(job.name, {0: job.name}),)
    if job.is_sweep:  # one slice's loss must not take the others along
        return tuple(Resource(node, {number: node}) for number, node in slices.items())
    return (Resource(job.name, slices),)  # gcloud numbers nodes of a prefix so


def render(job: Job) -> Rendering:
    """Return the script and the commands of a job on TPU VMs.

    Raises:
      UsageError: not a TPU, no zone, or options that exclude each other.
    """
    _check(job)
    asked = resources(job)
    nodes = [(number, node) for resource in asked for number, node in resource.nodes.items()]
    return Rendering(
        files={SCRIPT: script(job)},
        submit=(
            *(create(job, resource) for resource in asked),
            *(describe(job, resource) for resource in asked),
            *(copy(job, node) for _, node in nodes),
            *(start(job, number, node) for number, node in nodes),
        ),
        watch=(*(describe(job, resource) for resource in asked), *(log(job, node) for _, node in nodes)),
        stop=tuple(delete(job, resource) for resource in asked),
        notes=_notes(job),
    )


def _check(job: Job) -> None:
    if not job.accelerator.tpu:
        raise UsageError(f"--target tpu-vm has TPUs only, not {job.topology}: use gke, slurm or sky.")
    if "zone" not in job.options:
        raise UsageError("--target tpu-vm needs --option zone=ZONE, like us-central2-b.")
    if job.spot and job.reservation:
        raise UsageError("--spot and --reservation exclude each other: reserved capacity is not taken away.")
    if not is_remote(job.workdir) and not job.workdir.startswith("/"):
        raise UsageError(f"--workdir {job.workdir}: the TPU VMs need a bucket (gs://…) or a network disk's full path.")


def _notes(job: Job) -> tuple[str, ...]:
    accelerator = job.accelerator
    kind = "spot" if job.spot else f"reservation {job.reservation}" if job.reservation else "on demand"
    slices = f"{accelerator.copies} x " if accelerator.copies > 1 else ""
    notes = [
        f"Asks for {slices}{accelerator.gcloud_type} ({accelerator.devices} chips, {kind}) in {job.options['zone']}: "
        "the project needs the Cloud TPU API and quota for that.",
        "This command stays: it waits for the TPUs, renews them after a preemption, and gives them back at the end. "
        "The same command takes a job up again from anywhere.",
    ]
    if accelerator.hosts > 1:
        notes.append("gcloud reaches several hosts through an ssh agent: ssh-add ~/.ssh/google_compute_engine")
    if not is_remote(job.workdir):
        notes.append(f"{job.workdir} must be a disk that all hosts and this machine have mounted.")
    return tuple(notes)


def _where(job: Job) -> tuple[str, ...]:
    project = (f"--project={job.options['project']}",) if "project" in job.options else ()
    return f"--zone={job.options['zone']}", *project


def _is_on(job: Job, option: str, default: str = "false") -> bool:
    return job.options.get(option, default).lower() in ("true", "1", "yes")


def create(job: Job, resource: Resource) -> Command:
    """Ask for the resource. Its VMs pass a maintenance's or preemption's SIGTERM on to the job."""
    nodes = tuple(resource.nodes.values())
    size = (f"--node-id={nodes[0]}",)
    if len(nodes) > 1:
        size = (f"--node-count={len(nodes)}", f"--node-prefix={resource.name}")
    flags = [
        f"--accelerator-type={job.accelerator.gcloud_type}",
        f"--runtime-version={job.options.get('runtime', job.accelerator.tpu.runtime)}",
    ]
    if _is_on(job, "autocheckpoint", "true"):
        flags.append("--autocheckpoint-enabled")
    if job.spot:
        flags.append("--spot")
    if job.reservation:
        flags += ["--reserved", f"--reservation={job.reservation}"]
    for option in ("network", "subnetwork", "service_account"):
        if option in job.options:
            flags.append(f"--{option.replace('_', '-')}={job.options[option]}")
    if _is_on(job, "internal_ips"):
        flags.append("--internal-ips")
    argv = (*_TPUS, "queued-resources", "create", resource.name, *size, *_where(job), *flags, "--quiet")
    return Command("ask for the TPUs", argv)


def describe(job: Job, resource: Resource) -> Command:
    """Print the resource's state, and what it says of a failure."""
    shown = "--format=value(state.state,state.failedData.error.message)"
    return Command(
        "the request's state (wait for ACTIVE)",
        (*_TPUS, "queued-resources", "describe", resource.name, *_where(job), shown),
    )


def describe_node(job: Job, node: str) -> Command:
    """Print the state of one slice's VMs."""
    return Command(
        "the slice's state (READY, PREEMPTED …)",
        (*_TPUS, "tpu-vm", "describe", node, *_where(job), "--format=value(state)"),
    )


def copy(job: Job, node: str) -> Command:
    """Copy the code and the script into the home directory of all hosts of a slice."""
    files = (SCRIPT,) if job.image else (CODE, SCRIPT)
    return Command(
        "copy the code to all hosts",
        (*_TPUS, "tpu-vm", "scp", *files, f"{node}:", "--worker=all", *_where(job), *_tunnel(job), "--quiet"),
    )


def start(job: Job, number: int, node: str) -> Command:
    """Start the script on all hosts of a slice. Where it runs it goes on."""
    command = f"setsid nohup bash {SCRIPT} {number} >> {LOG} 2>&1 < /dev/null &"
    return _on_hosts(job, node, "all", command, "start the job on all hosts (does nothing where it runs)")


def log(job: Job, node: str, lines: int = 50, follow: bool = True) -> Command:
    """Print what the script on a slice's first host says, installation included."""
    command = f"tail -n {lines} {'-F ' if follow else ''}{LOG}"
    return _on_hosts(job, node, "0", command, "what its first host says")


def delete(job: Job, resource: Resource) -> Command:
    """Give the resource back, with its VMs."""
    argv = (*_TPUS, "queued-resources", "delete", resource.name, *_where(job), "--force", "--quiet")
    return Command("give the TPUs back", argv)


def _on_hosts(job: Job, node: str, worker: str, command: str, what: str) -> Command:
    where = (f"--worker={worker}", *_where(job), *_tunnel(job), "--quiet")
    return Command(what, (*_TPUS, "tpu-vm", "ssh", node, *where, f"--command={command}"))


def _tunnel(job: Job) -> tuple[str, ...]:
    return (
        ("--tunnel-through-iap",) if _is_on(job, "iap") else ("--internal-ip",) if _is_on(job, "internal_ips") else ()
    )


def script(job: Job) -> str:
    """Return `run.sh`: what every host runs, once at a time, from nothing to the job's end."""
    if job.image:
        code, command = _registry(job.image), _container(job)
    else:
        code = f"""
code=$HOME/{shell.folder_name(job)}
{shell.unpack(CODE, '"$code"')}cd "$code" || exit 1
export PYTHONPATH=$code
{shell.install(job)}"""
        command = shlex.join(worker_command(job, shell.python_of(job)))
    return f"""\
#!/bin/bash
# One host of the job {job.name}: `bash {SCRIPT} SLICE`, in the home directory.
# Its own output goes to {LOG} beside it; the job's logs and records to {job.folder}
set -uo pipefail
cd || exit 1

# The job's processes hold the lock too: while one lives, a second start does nothing.
exec 9> run.lock
flock --nonblock 9 || {{ echo "runs already"; exit 0; }}

worker=${{HOSTNAME##*-w-}}  # t1v-n-0a1b2c3d-w-5
[[ $worker =~ ^[0-9]+$ ]] || worker=${{TPU_WORKER_ID:-0}}
export LM_LAUNCH_HOST=$1-$worker
{shell.exports(environment_of(job))}{code}
{shell.restarted(command)}"""


def _container(job: Job) -> str:
    variables = [f"--env={name}={value}" for name, value in environment_of(job).items()]
    disk = [] if is_remote(job.workdir) else [f"--volume={job.workdir}:{job.workdir}"]
    flags = shlex.join(["--net=host", "--ipc=host", "--privileged", *disk, *variables])
    run = shlex.join([job.image, *worker_command(job)])
    clear = "sudo docker rm --force lm > /dev/null 2>&1"  # what a client that died has left
    return f'{clear}; sudo docker run --rm --name=lm {flags} --env="LM_LAUNCH_HOST=$LM_LAUNCH_HOST" {run}'


def _registry(image: str) -> str:
    """Return a line that lets Docker read a private image of Google's registries."""
    host = image.partition("/")[0]
    login = f"sudo docker login --username=oauth2accesstoken --password-stdin https://{host}"
    return f"\ngcloud auth print-access-token | {login}\n" if host.endswith((".pkg.dev", "gcr.io")) else ""
