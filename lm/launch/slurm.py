"""Slurm: one batch script that submits, requeues and ends a job by its hosts' exit codes."""

import shlex
from collections.abc import Mapping

from lm.errors import UsageError
from lm.launch import shell
from lm.launch.job import Job
from lm.launch.render import CODE, Command, Rendering, environment_of, worker_command
from lm.storage import is_remote

OPTIONS: Mapping[str, str] = {
    "partition": "the partition",
    "account": "who pays",
    "qos": "the quality of service",
    "time": "the limit of one stretch, like 24:00:00; the job saves before it and goes on in the next",
    "constraint": "features that the nodes must have",
    "gres": "how GPUs are asked for, like gpu:h100:8 (default: --gpus-per-node=N)",
    "cpus": "CPUs per node (default: all of a node that is taken whole, else the cluster's default)",
    "mem": "memory per node, like 100G (default: all of a node that is taken whole, else the cluster's default)",
    "folder": "a folder that all nodes and this machine see, for code and Slurm's logs (needed with a bucket as workdir)",
    "python": "the interpreter on the nodes (default: the python of the shell that submits)",
}
SCRIPT = "job.sbatch"
_WHOLE = 8  # GPUs of a node: it is taken whole


def render(job: Job) -> Rendering:
    """Return the batch script and the commands of a job on a Slurm cluster.

    Raises:
      UsageError: TPUs, or no folder that the nodes see.
    """
    if job.accelerator.tpu:
        raise UsageError(f"--target slurm has GPUs and CPUs only, not {job.topology}: use tpu-vm, gke, xpk or sky.")
    folder = _folder(job)
    name = f"--name={job.name}"
    copied = ()
    if not job.image and is_remote(job.workdir):
        copied = (Command("put the code where the nodes see it", ("cp", CODE, f"{folder}/{CODE}")),)
    return Rendering(
        files={SCRIPT: script(job)},
        submit=(
            Command("make the folder of Slurm's logs", ("mkdir", "-p", f"{folder}/slurm")),
            *copied,
            Command("submit the job", ("sbatch", "--parsable"), SCRIPT),
        ),
        watch=(Command("its place in the queue", ("squeue", name)),),
        stop=(Command("take it from the queue, or end it", ("scancel", name)),),
        notes=_notes(job),
    )


def _folder(job: Job) -> str:
    """Return the folder of code and logs: the job's own, unless that is in a bucket."""
    folder = job.options.get("folder")
    if folder is None and is_remote(job.workdir):
        raise UsageError(
            "--target slurm with a workdir in a bucket needs --option folder=/a/folder/that/all/nodes/see."
        )
    if not (folder or job.folder).startswith("/"):
        raise UsageError(f"--target slurm needs a full path, not {folder or job.workdir}: nodes start elsewhere.")
    return f"{folder.rstrip('/')}/{job.name}" if folder else job.folder


def _notes(job: Job) -> tuple[str, ...]:
    notes = []
    if job.accelerator.gpu and "gres" not in job.options:
        kind = f"{job.accelerator.family} GPUs"
        notes.append(f"Any GPUs will do for Slurm: name a partition, constraint or gres that gives {kind}.")
    if job.spot:
        notes.append("Slurm has no spot: name a partition or qos whose jobs may be preempted (PreemptMode=REQUEUE).")
    if job.install is None and not job.image:
        notes.append("The nodes use the python of the shell that submits: activate the environment first.")
    return tuple(notes)


def script(job: Job) -> str:
    """Return `job.sbatch`."""
    return f"""\
#!/bin/bash
{_directives(job)}
# The job {job.name}: its records and logs are in {job.folder}
# How it ends is decided below, by the exit codes that its hosts leave in slurm/ends.JOB.RESTART/.
set -uo pipefail
trap : TERM  # Slurm tells the hosts; this script waits for what they say

folder={shlex.quote(_folder(job))}
{_code(job)}{shell.exports(environment_of(job))}
export ends=$folder/slurm/ends.$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}
mkdir -p "$ends" || exit 1

{_host(job)}
code=0
{_srun(job)} || code=$?

codes=$(cat "$ends"/* 2> /dev/null | sort -n | uniq)
echo "$(date -u +%FT%TZ) srun: exit $code; hosts: exit" ${{codes:-without a word}}
for one in $codes; do  # wrong usage or an error: there is no use in running it again
  if [ "$one" -ne 0 ] && [ "$one" -ne 42 ] && [ "$one" -lt 128 ]; then exit "$one"; fi
done
if [ "$code" -eq 0 ] && [ "$codes" = 0 ]; then exit 0; fi

# Preempted, at the time limit, or a host died. A job that someone cancels must not come back.
state=$(scontrol show job --oneliner "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*')
if [ "$state" != JobState=RUNNING ]; then exit 42; fi
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {job.max_restarts} ]; then
  echo "restarted {job.max_restarts} times: no more"
  exit 1
fi
wordless=$folder/slurm/wordless.$SLURM_JOB_ID
if [ "$codes" ]; then rm -f "$wordless"; else echo "$code" >> "$wordless"; fi
if [ "$(cat "$wordless" 2> /dev/null | wc -l)" -ge 3 ]; then
  echo "srun failed three times before any host had a word: no more"
  exit 1
fi
scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this script, and waits two minutes before the next
exit 42
"""


def _directives(job: Job) -> str:
    accelerator, options = job.accelerator, job.options
    machines = accelerator.copies * accelerator.hosts
    whole = accelerator.gpu is not None and accelerator.devices_per_host == _WHOLE
    cpus = options.get("cpus", accelerator.shape if accelerator.platform == "cpu" else None)
    memory = options.get("mem", "0" if whole else None)
    asked = {
        "job-name": job.name,
        **{name: options[name] for name in ("partition", "account", "qos", "time", "constraint") if name in options},
        "reservation": job.reservation,
        "array": f"0-{machines - 1}" if job.is_sweep else None,
        "nodes": 1 if job.is_sweep else machines,
        "ntasks-per-node": 1,
        "gres": options.get("gres"),
        "gpus-per-node": accelerator.devices_per_host if accelerator.gpu and "gres" not in options else None,
        "cpus-per-task": cpus,
        "mem": memory,
        "signal": f"TERM@{job.grace_seconds}",
        "open-mode": "append",
        "chdir": _folder(job),
        "output": f"{_folder(job)}/slurm/{'%A_%a' if job.is_sweep else '%j'}.log",
        # The same job submitted twice waits for itself, and then finds nothing left to do.
        "dependency": "singleton",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
    return "\n".join([*lines, *(["#SBATCH --exclusive"] if whole else []), "#SBATCH --requeue"])


def _code(job: Job) -> str:
    if job.image:
        return ""
    install = shell.install(job) if job.install else ""
    locked = f"exec 9> ../install.lock && flock 9\n{install}exec 9>&-\n" if install else ""
    return f"""\
code=$folder/{shell.folder_name(job)}
{shell.unpack(f'"$folder/{CODE}"', '"$code"')}cd "$code" || exit 1
export PYTHONPATH=$code
{locked}"""


def _host(job: Job) -> str:
    """Return the variable `host`: what runs on every node. It leaves its exit code where the script looks for it."""
    number = "SLURM_ARRAY_TASK_ID" if job.is_sweep else "SLURM_PROCID"
    hosts = job.accelerator.hosts
    python = job.options.get("python", "python")
    text = f"""
trap : TERM
export LM_LAUNCH_HOST=$(({number} / {hosts}))-$(({number} % {hosts}))
code=0
{shlex.join(worker_command(job, python))} || code=$?
echo "$code" > "$ends/$LM_LAUNCH_HOST"
if [ "$code" -eq 42 ]; then exit 0; fi
exit "$code"
"""
    return f"""\
# A host that was stopped in order (42) does not make srun end the others, which still save; any other end does.
host={shlex.quote(text)}
"""


def _srun(job: Job) -> str:
    words = ["srun", "--kill-on-bad-exit=1", "--cpu-bind=none"]
    if job.image:
        mounts = [_folder(job)] if is_remote(job.workdir) else [_folder(job), job.workdir]
        seen = ",".join(f"{path}:{path}" for path in dict.fromkeys(mounts))
        words += [f"--container-image={job.image}", f"--container-mounts={seen}"]  # pyxis
    return f'{shlex.join(words)} bash -c "$host"'
