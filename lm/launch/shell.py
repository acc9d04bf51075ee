"""What the scripts of several targets share: short, plain bash, because it is read when something has gone wrong."""

import shlex
from collections.abc import Mapping

from lm.launch.job import Job

PYTHON = "3.12"  # TPU VM images bring 3.10


def exports(variables: Mapping[str, str]) -> str:
    """Return a line per variable that puts it into the environment."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def folder_name(job: Job) -> str:
    """Return the name of the folder that holds the code at the job's commit."""
    return f"code-{job.commit[:12]}"


def unpack(archive: str, folder: str) -> str:
    """Return lines that unpack the code into its folder, unless it is there: whole or not at all.

    Args:
      archive, folder: as the shell reads them, variables and quotes included.
    """
    return f"""\
if [ ! -d {folder} ]; then
  fresh=$(mktemp -d {folder}.XXXXXX) && tar -xzf {archive} -C "$fresh" || exit 1
  mv -T "$fresh" {folder} 2>/dev/null || rm -rf "$fresh"  # another was faster
fi
"""


def install(job: Job) -> str:
    """Return lines that install the project once per commit, in its folder: `../venv`, or as `job.install` says."""
    if job.install == "" or job.image:
        return ""
    project = f".[{job.extras}]" if job.extras else "."
    own = f"""\
  {{ python3 -m pip install --quiet --user uv || curl -LsSf https://astral.sh/uv/install.sh | sh; }} &&
  ~/.local/bin/uv venv --quiet --allow-existing --python {PYTHON} ../venv &&
  ~/.local/bin/uv pip install --quiet --python ../venv/bin/python --editable {shlex.quote(project)}
"""
    return f"""\
install() {{
{own if job.install is None else f"  {job.install}{chr(10)}"}}}
for attempt in 1 2 3; do  # a package index may be away for a moment
  [ -e .installed ] || {{ install && touch .installed; }} || {{ echo "installing failed ($attempt of 3)"; sleep 20; }}
done
[ -e .installed ] || exit 1
"""


def python_of(job: Job) -> str:
    """Return the interpreter that `install` leaves, from the code's folder."""
    return "../venv/bin/python" if job.install is None and not job.image else job.options.get("python", "python")


def restarted(command: str) -> str:
    """Return lines that run a host's worker until it has ended for good, and exit with its code.

    Exit 42 and a death by signal (128 and above) mean: again. Whether there is any use in that the worker decides
    itself, when it starts. A SIGTERM to the script itself comes from a machine that is being taken away: exit 42.
    """
    return f"""\
going=
trap 'going=yes' TERM  # the worker was told too: bash waits for it first
while :; do
  code=0
  {command} || code=$?
  echo "$(date -u +%FT%TZ) host $LM_LAUNCH_HOST: exit $code"
  if [ "$code" -ne 42 ] && [ "$code" -lt 128 ]; then exit "$code"; fi
  if [ "$going" ]; then exit 42; fi
  sleep 10
done
"""
