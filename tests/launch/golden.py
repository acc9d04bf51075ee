"""Golden files of the launch renderers: `python -m tests.launch.golden` writes them anew; read the difference.

One folder per target and job, with the rendering's files and its commands; `refused.txt` where the target cannot
serve the job.
"""

import dataclasses
import importlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping

from lm.errors import UsageError
from lm.launch.job import Job, named

FOLDER = pathlib.Path(__file__).parent / "golden"
# Target -> the options that it cannot do without.
TARGETS: Mapping[str, Mapping[str, str]] = {
    "gke": {},
    "xpk": {"cluster": "tpus", "project": "a-project", "zone": "us-east5-b"},
    "tpu-vm": {"zone": "us-east5-b"},
    "slurm": {"folder": "/shared/lm"},
    "sky": {},
}
TOPOLOGIES = ("v5e:4x4", "v5p:4x4x4", "2*v6e:16x16", "h100:64", "l4:1")
VERBS = {
    "train": ("gs://bucket/llama", "train --config experiments/llama_1b.py --workdir gs://bucket/llama"),
    "eval": ("gs://bucket/llama", "eval --checkpoint gs://bucket/llama"),
    "sweep": (
        "gs://bucket/swiglu",
        "sweep --config experiments/sweeps/swiglu_vs_gelu.py --workdir gs://bucket/swiglu",
    ),
}
# Target -> name -> what differs from training on v5e:4x4.
VARIANTS: Mapping[str, Mapping[str, Mapping]] = {
    "gke": {
        "all-options": {
            "options": {
                "context": "gke_a-project_us-east5_tpus",
                "namespace": "research",
                "queue": "tpus",
                "service-account": "trainer",
                "secret": "wandb",
            },
            "spot": False,
            "reservation": "a-reservation",
            "environment": {"WANDB_MODE": "online"},
            "grace_seconds": 60,
            "max_restarts": 7,
        },
        "image": {"image": "europe-docker.pkg.dev/a-project/lm/lm:1", "topology": "v5e:2x2"},
        "image-and-install": {
            "image": "europe-docker.pkg.dev/a-project/lm/base:1",
            "install": "pip install --no-deps .",
        },
        "several-gpu-machines": {"topology": "4*l4:1"},
    },
    "xpk": {"image": {"image": "europe-docker.pkg.dev/a-project/lm/lm:1"}},
    "tpu-vm": {
        "all-options": {
            "options": {
                "project": "a-project",
                "runtime": "v2-alpha-tpuv5-lite",
                "network": "a-network",
                "subnetwork": "a-subnetwork",
                "internal_ips": "true",
                "iap": "true",
                "service_account": "trainer@a-project.iam.gserviceaccount.com",
                "python": "python3.12",
            },
            "spot": False,
            "reservation": "a-reservation",
            "environment": {"WANDB_MODE": "online", "NOTE": "two words"},
            "install": "python3.12 -m pip install '.[tpu,gcs]'",
        },
        "image": {
            "image": "europe-docker.pkg.dev/a-project/lm/lm:1",
            "environment": {"WANDB_MODE": "online"},
            "workdir": "/mnt/disk/llama",
        },
        "two-slices-on-demand": {"topology": "2*v6e:4x4", "spot": False, "install": ""},
    },
    "slurm": {
        "all-options": {
            "options": {
                "partition": "gpus",
                "account": "research",
                "qos": "normal",
                "time": "24:00:00",
                "constraint": "h100",
                "gres": "gpu:h100:8",
                "cpus": "96",
                "mem": "1000G",
                "python": "/shared/venv/bin/python",
            },
            "topology": "h100:16",
            "spot": False,
            "reservation": "a-reservation",
            "environment": {"WANDB_MODE": "online", "NOTE": "two words"},
            "grace_seconds": 300,
            "max_restarts": 7,
        },
        "cpu": {"topology": "4*cpu:2"},
        "image": {"topology": "h100:16", "image": "registry/lm:1"},
        "install": {"topology": "h100:16", "install": "python -m pip install '.[gpu]'"},
        "workdir-on-the-shared-disk": {"topology": "h100:8", "workdir": "/shared/llama", "options": {"folder": None}},
    },
    "sky": {
        "all-options": {
            "options": {
                "infra": "gcp/us-east5/us-east5-b",
                "runtime": "v2-alpha-tpuv5-lite",
                "disk_size": "500",
                "python": "python3",
            },
            "spot": False,
            "environment": {"WANDB_MODE": "online", "NOTE": "two words"},
            "install": "python3 -m pip install '.[tpu,gcs]'",
        },
        "image": {"topology": "4*l4:1", "image": "registry/lm:1"},
    },
}


def job_of(target: str, topology: str, verb: str) -> Job:
    """Return the job of a golden folder."""
    workdir, line = VERBS[verb]
    return Job(
        arguments=tuple(line.split()),
        target=target,
        topology=topology,
        workdir=workdir,
        commit="0123456789abcdef0123456789abcdef01234567",
        spot=True,
        options=TARGETS[target],
    )


def cases() -> Iterator[tuple[str, str, Job]]:
    """Yield target, folder name and job of every golden folder."""
    for target in TARGETS:
        for topology in TOPOLOGIES:
            for verb in VERBS:
                yield (
                    target,
                    f"{topology.replace('*', 'x').replace(':', '-')}-{verb}",
                    named(job_of(target, topology, verb)),
                )
        for name, changes in VARIANTS.get(target, {}).items():
            changes = {**changes, "options": {**TARGETS[target], **changes.get("options", {})}}
            yield target, name, named(dataclasses.replace(job_of(target, "v5e:4x4", "train"), **changes))


def rendered(job: Job) -> dict[str, str]:
    """Return the files of a golden folder by name."""
    renderer = importlib.import_module(f"lm.launch.{job.target.replace('-', '_')}")
    try:
        rendering = renderer.render(job)
    except UsageError as refusal:
        return {"refused.txt": f"{refusal}\n"}
    lines = []
    for title, commands in (("submit", rendering.submit), ("watch", rendering.watch), ("stop", rendering.stop)):
        lines += [f"## {title}", *(line for command in commands for line in (f"# {command.what}", str(command))), ""]
    lines += ["## notes", *(f"- {note}" for note in rendering.notes)]
    return {**rendering.files, "commands.txt": "\n".join(lines) + "\n"}


def write() -> None:
    """Write all golden folders anew."""
    for target in TARGETS:
        shutil.rmtree(FOLDER / target, ignore_errors=True)
    for target, name, job in cases():
        folder = FOLDER / target / name
        folder.mkdir(parents=True)
        for file, text in rendered(job).items():
            (folder / file).write_text(text)


if __name__ == "__main__":
    write()
