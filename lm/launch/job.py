"""What a job is: a verb with its arguments, where it runs, and what may happen to it. Plain data that goes into its folder."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from lm.launch.accelerators import Accelerator, parse
from lm.storage import join

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")
TARGETS = ("local", "tpu-vm", "gke", "xpk", "slurm", "sky")


@dataclasses.dataclass(frozen=True)
class Job:
    """One job: `python -m lm ARGUMENTS` on every host of a topology, until it is done.

    A sweep is many runs on one ledger: there every host is a worker for itself.
    """

    arguments: tuple[str, ...]  # the verb and what follows it
    target: str  # one of TARGETS
    topology: str  # see `lm.launch.accelerators`
    workdir: str  # of the verb; the job's own records are in its `launch/NAME/`
    shared_disk: bool = False  # local paths are on a disk that all hosts and this machine have mounted
    commit: str = ""  # of the code that runs
    spot: bool = False  # cheaper, and may be taken away at any time
    reservation: str | None = None  # a reserved capacity's name
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    image: str | None = None  # a container that holds this project, installed
    install: str | None = None  # instead of the target's own way to install the code; "" installs nothing
    max_restarts: int = 100
    grace_seconds: int = 120  # between the word that a host will be taken and its end
    silence_minutes: float = 60.0  # without a word of the process it counts as hung and starts again
    budget_hours: float | None = None  # of running time, over all attempts
    needs: tuple[str, ...] = ()  # extras of this project that the config needs: "data", "log"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the target: zone, partition, queue …
    name: str = ""  # its own: see `named`

    @property
    def verb(self) -> str:
        return self.arguments[0]

    @property
    def is_sweep(self) -> bool:
        return self.verb == "sweep"

    @property
    def accelerator(self) -> Accelerator:
        return parse(self.topology)

    @property
    def folder(self) -> str:
        """Where the job's records are."""
        return join(self.workdir, "launch", self.name)

    @property
    def extras(self) -> str:
        """The project's extras that its hosts need: "tpu,gcs"."""
        needed = [self.accelerator.platform] if self.accelerator.platform != "cpu" else []
        schemes = {"gs": "gcs", "s3": "s3"}
        used = [extra for scheme, extra in schemes.items() if self.workdir.startswith(f"{scheme}://")]
        searched = ["sweep"] if self.is_sweep and "--search" in self.arguments else []
        return ",".join([*needed, *used, *searched, *self.needs])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Job":
        names = {field.name for field in dataclasses.fields(Job)}
        known = {name: value for name, value in values.items() if name in names}
        tuples = {name: tuple(known[name]) for name in ("arguments", "needs") if name in known}
        return Job(**{**known, **tuples})


def named(job: Job) -> Job:
    """Return the job with a name of its own: the same verb, arguments, place and folder always give the same one."""
    if job.name:
        return job
    what = [job.arguments, job.target, job.topology, job.workdir]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:6]
    words = re.sub(r"[^a-z0-9]+", "-", f"{job.verb}-{_config_name(job.arguments)}".lower()).strip("-")
    return dataclasses.replace(job, name=f"{words[:24].strip('-')}-{digest}")  # Kubernetes adds to it, up to 63


def secrets_in(job: Job) -> list[str]:
    """Return the names of the job's variables that look like secrets: its records can be read by many."""
    return [name for name in job.environment if _SECRET.search(name.upper())]


def option(arguments: tuple[str, ...], name: str) -> str | None:
    """Return the value of `--name VALUE` or `--name=VALUE` among a verb's arguments; None: it is not there."""
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _config_name(arguments: tuple[str, ...]) -> str:
    path = option(arguments, "--config") or option(arguments, "--checkpoint") or ""
    return os.path.splitext(os.path.basename(path.rstrip("/")))[0]
