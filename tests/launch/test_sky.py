"""SkyPilot: what is asked for, and what a machine's scripts do when they run."""

import dataclasses
import os
import subprocess
import tarfile

import pytest
import yaml

from lm.errors import UsageError
from lm.launch import sky
from lm.launch.job import Job, named
from tests.launch.golden import job_of


def job(topology: str = "h100:16", verb: str = "train", **changes) -> Job:
    return named(dataclasses.replace(job_of("sky", topology, verb), **changes))


def document(one: Job) -> dict:
    return yaml.safe_load(sky.render(one).files["job.yaml"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topology": "2*v5e:4x4"}, "does not join slices"),
        ({"topology": "cpu:2"}, "TPUs and GPUs only"),
        ({"workdir": "/shared/llama"}, "a bucket"),
        ({"reservation": "ours"}, "reservations"),
        ({"topology": "v99:4x4"}, "expected a family"),  # SkyPilot's own parser takes any name
    ],
)
def test_what_skypilot_cannot_do_is_refused_in_one_line(changes, said):
    with pytest.raises(UsageError, match=said) as caught:
        sky.render(job(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("topology", "accelerators", "nodes"),
    [
        ("v5e:4x4", "tpu-v5litepod-16", 1),
        ("v5p:4x4x4", "tpu-v5p-128", 1),
        ("v4:2x2x2", "tpu-v4-16", 1),
        ("h100:64", "H100:8", 8),
        ("2*a100:4", "A100-80GB:4", 2),
    ],
)
def test_a_topology_is_asked_for_in_skypilots_names(topology, accelerators, nodes):
    task = document(job(topology))
    assert (task["resources"]["accelerators"], task["num_nodes"]) == (accelerators, nodes)


@pytest.mark.parametrize(("topology", "machines"), [("h100:16", 2), ("2*v6e:16x16", 2), ("v5e:4x4", 1), ("l4:1", 1)])
def test_every_machine_of_a_sweep_is_a_managed_job_of_its_own(topology, machines):
    one = job(topology, "sweep")
    rendering = sky.render(one)
    assert len(rendering.submit) == len(rendering.stop) == machines and document(one)["num_nodes"] == 1


def run(one: Job, folder, part: str, python: str, **environment: str) -> tuple[int, list[str]]:
    """Run a part of the task with a home of its own and stand-ins for the programs that it calls."""
    home, programs = folder / "home", folder / "bin"
    (home / ".local" / "bin").mkdir(parents=True, exist_ok=True)
    programs.mkdir(exist_ok=True)
    (folder / "README.md").write_text("the code")
    with tarfile.open(home / "code.tar.gz", "w:gz") as archive:
        archive.add(folder / "README.md", "README.md")
    uv = 'echo "uv $*"'
    for path, text in {
        programs / "python": python,
        programs / "python3": "exit 0",
        programs / "sleep": "exit 0",
        home / ".local" / "bin" / "uv": uv,
    }.items():
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", document(one)[part]],
        cwd=home,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout.splitlines()


SAYS = 'echo "$LM_LAUNCH_HOST ${LM_COORDINATOR:-} ${LM_NUM_PROCESSES:-} ${LM_PROCESS_ID:-}"'


def test_the_code_is_unpacked_and_installed_with_what_the_accelerator_needs(tmp_path):
    code, lines = run(job(), tmp_path, "setup", "exit 0")
    assert code == 0 and any(line.startswith("uv pip install") and ".[gpu,gcs]" in line for line in lines)
    assert (tmp_path / "home" / "code-0123456789ab" / "README.md").read_text() == "the code"
    assert run(job(), tmp_path, "setup", "exit 0") == (0, [])


@pytest.mark.parametrize(
    ("topology", "verb", "environment", "said"),
    [
        ("h100:16", "train", {"SKYPILOT_NODE_RANK": "1"}, "0-1 10.0.0.1:8476 2 1"),
        ("2*l4:1", "train", {"SKYPILOT_NODE_RANK": "1"}, "1-0 10.0.0.1:8476 2 1"),
        ("l4:1", "train", {"SKYPILOT_NODE_RANK": "0"}, "0-0"),
        ("v5e:4x4", "train", {"SKYPILOT_NODE_RANK": "3"}, "0-3"),  # TPU hosts find each other
        ("h100:16", "sweep", {"LM_LAUNCH_MACHINE": "1", "LM_NUM_PROCESSES": "1"}, "0-1  1"),
        ("2*v6e:16x16", "sweep", {"LM_LAUNCH_MACHINE": "1", "SKYPILOT_NODE_RANK": "63"}, "1-63"),
    ],
)
def test_a_machine_knows_which_host_it_is_and_where_the_others_are(tmp_path, topology, verb, environment, said):
    one = job(topology, verb, install="")
    run(one, tmp_path, "setup", SAYS)
    addresses = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    code, lines = run(one, tmp_path, "run", SAYS, **addresses, **environment)
    assert code == 0 and lines[0].strip() == said


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_worker_starts_again_on_its_machine_after_42_and_death_by_signal_and_never_after_anything_else(
    tmp_path, last
):
    one = job("l4:1", install="")
    run(one, tmp_path, "setup", "")
    (tmp_path / "home" / "codes").write_text(f"42\n309\n{last}\n42\n")
    steps = 'read -r code < ~/codes; sed -i 1d ~/codes; [ "$code" -lt 300 ] || kill -"$((code - 300))" $$; exit "$code"'
    code, lines = run(one, tmp_path, "run", steps, SKYPILOT_NODE_RANK="0")
    assert code == last and [int(line.split()[-1]) for line in lines] == [42, 137, last]
