"""What a pod runs, by hand (`gke`) or through xpk: an image, the code put into it, the job's worker."""

import shlex

from lm.errors import UsageError
from lm.launch.job import Job, secrets_in
from lm.launch.render import CODE, worker_command
from lm.storage import join

IMAGE = "python:3.12"  # where the job names none
_STORES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme -> the package that reads it
_PIP = "pip install --quiet --root-user-action=ignore --disable-pip-version-check"
# Without a quotation mark of the other kind: xpk writes the script between double quotes.
_FETCH = "python -c 'import fsspec, sys; fsspec.filesystem(sys.argv[1]).get(sys.argv[2], sys.argv[3])'"
# For as long as a package index or a store may be away. What fails three times is not mended by a new host.
_INSTALL_TRIES = """\
for pause in 10 60 none; do
  install && break
  test $pause = none && exit 1
  sleep $pause
done"""


def image(job: Job) -> str:
    """Return the container image of a job's hosts."""
    return job.image or IMAGE


def script(job: Job, before: tuple[str, ...] = ()) -> str:
    """Return the POSIX shell script of a host: the code installed, then the worker in the shell's place.

    `exec` matters: SIGTERM goes to the process that was started, and a shell would keep it to itself.

    Args:
      before: lines that come first.
    """
    lines = [*before]
    if installation := _installation(job):
        lines += ["install() {", "  " + " &&\n  ".join(installation), "}", _INSTALL_TRIES]
    return "\n".join([*lines, f"exec {shlex.join(worker_command(job))}"]) + "\n"


def _installation(job: Job) -> list[str]:
    if job.install == "" or (job.image and job.install is None):
        return []
    scheme = job.workdir.split("://", 1)[0]
    reader = [] if job.image else [f"{_PIP} fsspec {_STORES[scheme]}"]
    return [
        "mkdir -p ~/lm",
        "cd ~/lm",
        *reader,
        f"{_FETCH} {scheme} {shlex.quote(join(job.folder, CODE))} {CODE}",
        f"tar -xzf {CODE}",
        f"( {job.install} )" if job.install else f"{_PIP} {shlex.quote(f'.[{job.extras}]')}",
    ]


def host_of_index(job: Job) -> str:
    """Return a host's name, COPY-INDEX, where the hosts of all copies are one Job: an expression of the shell."""
    accelerator = job.accelerator
    if accelerator.copies == 1:
        return "0-$JOB_COMPLETION_INDEX"
    return "-".join(f"$((JOB_COMPLETION_INDEX {sign} {accelerator.hosts}))" for sign in "/%")


def on_one_line(text: str) -> str:
    """Return a script of `script` as one line, for tools that take no more."""
    line = ""
    for part in map(str.strip, text.strip().splitlines()):
        line += part + (" " if part.endswith(("{", "do", "&&")) else "; ")
    return line.removesuffix("; ")


def check(job: Job, secrets: str) -> None:
    """Refuse what no pod can serve.

    Args:
      secrets: what to do with a secret instead.

    Raises:
      UsageError: the workdir is on no object store, the topology is of neither TPUs nor GPUs, or a variable would
        put a secret where everybody who may look at the cluster reads it.
    """
    if job.workdir.split("://", 1)[0] not in _STORES:
        raise UsageError(
            f'--workdir "{job.workdir}": the pods of {job.target} share no folder; use a bucket, gs://… or s3://….'
        )
    if not (job.accelerator.tpu or job.accelerator.gpu):
        raise UsageError(f"--topology {job.topology}: {job.target} serves TPUs and GPUs.")
    if found := secrets_in(job):
        raise UsageError(f"{', '.join(found)}: a secret must not be written into what is submitted; {secrets}.")
