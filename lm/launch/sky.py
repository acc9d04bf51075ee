"""SkyPilot: a managed job, which recovers from preemptions on whatever cloud has the machines."""

import shlex
from collections.abc import Mapping

import yaml

from lm.errors import UsageError
from lm.launch import shell
from lm.launch.job import Job
from lm.launch.render import CODE, Command, Rendering, environment_of, worker_command
from lm.storage import is_remote

OPTIONS: Mapping[str, str] = {
    "infra": "where: CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE (default: gcp for TPUs, else the cheapest that is set up)",
    "runtime": "the TPU VM's software version (default: the family's usual one)",
    "disk_size": "of each machine, in GB (default: SkyPilot's)",
    "python": "the interpreter on the machines, with an install step of your own (default: python)",
}
SCRIPT = "job.yaml"
_PORT = 8476  # of process 0, among the job's own machines
_MACHINE = "LM_LAUNCH_MACHINE"  # which of a sweep's machines a managed job is


def render(job: Job) -> Rendering:
    """Return the YAML and the commands of a managed job.

    Raises:
      UsageError: a topology that SkyPilot cannot give, or a workdir that its machines cannot see.
    """
    _check(job)
    names = _names(job)
    launch = ("sky", "jobs", "launch", "--yes", "--detach-run")
    submit = [Command("submit the job", (*launch, SCRIPT))]
    if job.is_sweep:
        what = "submit one machine of the sweep"
        submit = [
            Command(what, (*launch, f"--name={name}", f"--env={_MACHINE}={number}", SCRIPT))
            for number, name in enumerate(names)
        ]
    return Rendering(
        files={SCRIPT: document(job)},
        submit=tuple(submit),
        watch=(
            Command("all managed jobs", ("sky", "jobs", "queue")),
            *(Command("what it says", ("sky", "jobs", "logs", f"--name={name}")) for name in names),
        ),
        stop=tuple(Command("end it", ("sky", "jobs", "cancel", "--yes", f"--name={name}")) for name in names),
        notes=_notes(job),
    )


def _check(job: Job) -> None:
    accelerator = job.accelerator
    if not (accelerator.tpu or accelerator.gpu):
        raise UsageError(f"--target sky has TPUs and GPUs only, not {job.topology}: use local or slurm.")
    if accelerator.tpu and accelerator.copies > 1 and not job.is_sweep:
        raise UsageError(f"--target sky does not join slices ({job.topology}): use tpu-vm, gke or xpk.")
    if not is_remote(job.workdir):
        raise UsageError(f"--workdir {job.workdir}: SkyPilot's machines need a bucket: gs://… or s3://…")
    if job.reservation:
        raise UsageError("--target sky takes reservations from ~/.sky/config.yaml, not from --reservation.")


def _notes(job: Job) -> tuple[str, ...]:
    notes = ["Needs `sky check` to show the cloud, and its rights to the bucket on the machines."]
    if job.is_sweep and len(_names(job)) > 1:
        notes.append("One managed job per machine: what happens to one leaves the others alone.")
    notes.append("SkyPilot would run a job twice that is launched twice: `sky jobs queue` shows what there is.")
    return tuple(notes)


def _machines(job: Job) -> int:
    """Return how many nodes SkyPilot counts: a TPU slice is one, of several hosts."""
    return job.accelerator.copies * (1 if job.accelerator.tpu else job.accelerator.hosts)


def _names(job: Job) -> list[str]:
    """Return the managed jobs: a sweep's machines are independent, so each is one of its own."""
    several = job.is_sweep and _machines(job) > 1
    return [f"{job.name}-{number}" for number in range(_machines(job))] if several else [job.name]


def document(job: Job) -> str:
    """Return `job.yaml`."""
    task = {
        "name": job.name,
        "num_nodes": 1 if job.is_sweep else _machines(job),
        "resources": _resources(job),
        "envs": {**({_MACHINE: "0"} if job.is_sweep else {}), **environment_of(job)},
    }
    if not job.image:
        task |= {"file_mounts": {f"~/{CODE}": CODE}, "setup": _setup(job)}
    task["run"] = _run(job)
    header = (
        f"# The job {job.name}: its records and logs are in {job.folder}\n"
        "# A managed job of SkyPilot: `sky jobs launch` in this folder.\n"
    )
    task = {key: value for key, value in task.items() if value}
    return header + yaml.dump(task, Dumper=_Plain, sort_keys=False, width=120)


class _Plain(yaml.SafeDumper):
    """Scripts as blocks that can be read."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _block)


def _resources(job: Job) -> dict:
    accelerator, options = job.accelerator, job.options
    infra = options.get("infra", "gcp" if accelerator.tpu else None)
    if accelerator.tpu:
        asked = {
            "accelerators": f"tpu-{accelerator.gcloud_type}",
            "accelerator_args": {"tpu_vm": True, "runtime_version": options.get("runtime", accelerator.tpu.runtime)},
        }
    else:
        asked = {"accelerators": f"{accelerator.gpu.sky}:{accelerator.devices_per_host}"}
    return {
        **({"infra": infra} if infra else {}),
        **asked,
        "use_spot": job.spot,
        **({"disk_size": int(options["disk_size"])} if "disk_size" in options else {}),
        **({"image_id": f"docker:{job.image}"} if job.image else {}),
        # Lost machines are replaced in any case. 42: the machine was being taken away when the job ended.
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [42]},
    }


def _setup(job: Job) -> str:
    return f"""\
set -uo pipefail
code=$HOME/{shell.folder_name(job)}
{shell.unpack(f'"$HOME/{CODE}"', '"$code"')}cd "$code" || exit 1
{shell.install(job)}"""


def _run(job: Job) -> str:
    code = "" if job.image else f'cd "$HOME/{shell.folder_name(job)}" || exit 1\nexport PYTHONPATH=$PWD\n'
    accelerator = job.accelerator
    if accelerator.tpu:
        host = f"{f'${_MACHINE}' if job.is_sweep else 0}-$SKYPILOT_NODE_RANK"
    elif job.is_sweep:
        host = f"$(({_MACHINE} / {accelerator.hosts}))-$(({_MACHINE} % {accelerator.hosts}))"
    else:
        host = f"$((SKYPILOT_NODE_RANK / {accelerator.hosts}))-$((SKYPILOT_NODE_RANK % {accelerator.hosts}))"
    together = ""
    if accelerator.gpu and not job.is_sweep and _machines(job) > 1:  # TPU hosts find each other
        together = f"""\
first=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")
export LM_COORDINATOR=$first:{_PORT} LM_NUM_PROCESSES=$SKYPILOT_NUM_NODES LM_PROCESS_ID=$SKYPILOT_NODE_RANK
"""
    command = shlex.join(worker_command(job, shell.python_of(job)))
    return f"""\
set -uo pipefail
{code}export LM_LAUNCH_HOST={host}
{together}
{shell.restarted(command)}"""
