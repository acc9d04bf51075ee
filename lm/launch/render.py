"""What a renderer returns: files, and commands that use them. Nothing here runs anything."""

import dataclasses
import shlex
from collections.abc import Mapping

from lm.launch.job import Job


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a cloud's own tool, run in a folder that holds the rendering's files."""

    what: str  # it does, for the person
    argv: tuple[str, ...]
    stdin: str | None = None  # a file of the rendering

    def __str__(self) -> str:
        return shlex.join(self.argv) + (f" < {self.stdin}" if self.stdin else "")


@dataclasses.dataclass(frozen=True)
class Rendering:
    """All that a target needs to be told of a job. The same job gives the same text, to the byte."""

    files: Mapping[str, str]  # name -> content
    submit: tuple[Command, ...]  # in this order
    watch: tuple[Command, ...]  # with the target's own tools; `lm launch status` needs none
    stop: tuple[Command, ...]  # and give back what costs money
    notes: tuple[str, ...] = ()  # what the person should know: what the cluster must have, what was chosen


def worker_command(job: Job, python: str = "python") -> tuple[str, ...]:
    """Return what every host runs: the job's worker, which runs the verb and keeps its records."""
    return python, "-m", "lm", "launch", "worker", job.folder


CODE = "code.tar.gz"  # the code at the job's commit, in the job's folder and beside the rendering's files


def environment_of(job: Job) -> dict[str, str]:
    """Return the variables that every host of the job has, beside what the target itself says."""
    alone = {}
    if job.is_sweep:
        # Every host is a worker of its own. On a slice of several hosts libtpu has to be told that it is alone.
        alone["LM_NUM_PROCESSES"] = "1"
        if job.accelerator.tpu and job.accelerator.hosts > 1:
            alone |= {
                "TPU_PROCESS_BOUNDS": "1,1,1",
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
                "TPU_VISIBLE_CHIPS": "0,1,2,3",
            }
    return {**alone, **job.environment}
