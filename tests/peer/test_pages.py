"""Every command that the launch pages print, read by its own tool's parser; `lm`'s are in tests/launch/test_pages.py.

SkyPilot's are read in test_sky.py, where it is installed, and TPU VMs' forms in test_gcloud.py. A form is a command without
its values: each is read once.
"""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.launch import pages
from tests.peer import test_gcloud
from tests.peer.test_gcloud import gcloud
from tests.peer.test_kubernetes_schemas import kubectl

__all__ = ["gcloud"]
pytestmark = pytest.mark.peer


def needs(program: str):
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"{program} is not installed: its commands on the launch pages are not read",
    )


def forms() -> dict[str, tuple[str, ...]]:
    """Return one of gcloud's commands of each form that test_gcloud.py does not read."""
    read = [set(form.split()) for form in test_gcloud.commands()]
    found = {}
    for argv in pages.of("gcloud"):
        names = [word.partition("=")[0] for word in argv[1:] if re.fullmatch(r"--[a-z-]+(=.*)?|[a-z-]+", word, re.S)]
        tpu_vm = set(argv[1:5]) >= {"compute", "tpus"} and any(
            set(names) - {"alpha", "compute", "tpus"} <= r for r in read
        )
        if not tpu_vm:
            found.setdefault(" ".join(names), argv)
    return found


@needs("gcloud")
def test_gcloud_knows_every_command_and_flag_of_the_pages(gcloud, record_property):
    commands = forms()
    record_property("validated", f"{len(commands)} forms of commands on the launch pages by gcloud's parser")

    def read(argv: tuple[str, ...]) -> str | None:
        """Return what gcloud says against a command; None: it knows it, and wants a login (or, without one, does it)."""
        asks = ("--help",) if argv[1] == "auth" else ()  # these would begin a login
        code, said = gcloud((*argv, *asks))
        return said if code == 2 or (code == 1 and "active account" not in said) else None

    with ThreadPoolExecutor(2) as pool:
        refused = {form: said for form, said in zip(commands, pool.map(read, commands.values()), strict=True) if said}
    assert not refused, refused
    assert len(commands) > 25


@needs("gcloud")
@pytest.mark.parametrize(
    "wrong",
    [
        ("gcloud", "storage", "buckets", "create", "gs://a", "--locations=us-west4"),
        ("gcloud", "container", "node-pools", "make", "a", "--cluster=b"),
        ("gcloud", "auth", "logon", "--help"),
    ],
)
def test_gcloud_refuses_a_mistake(gcloud, wrong):
    code, said = gcloud(wrong)
    assert code == 2 and re.search("unrecognized arguments|Invalid choice", said)


@needs("kubectl")
def test_kubectl_accepts_every_command_of_the_pages(tmp_path, record_property):
    commands = pages.of("kubectl")
    record_property("validated", f"{len(commands)} commands on the launch pages by kubectl")
    for argv in commands:
        # What it would download is given as an empty input.
        said = kubectl(["-" if word.startswith("https://") else word for word in argv], tmp_path)
        assert "refused" in said or "no objects passed to apply" in said, f"{argv}: {said}"
    assert len(commands) > 8
    assert "unknown flag" in kubectl(["kubectl", "get", "pods", "--all-namespace"], tmp_path)


@needs("squeue")
def test_slurm_accepts_every_command_of_the_pages(tmp_path, monkeypatch, record_property):
    (tmp_path / "slurm.conf").write_text("ClusterName=lm\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    commands = [*pages.of("squeue"), *pages.of("sinfo")]
    record_property("validated", f"{len(commands)} commands on the launch pages by Slurm's own parsers")

    def read(*argv: str) -> str:
        done = subprocess.run([*argv, "--help"], capture_output=True, text=True, timeout=60)
        return done.stderr

    assert len(commands) > 2
    assert not any(read(*argv) for argv in commands)
    assert "unrecognized option" in read("squeue", "--mine")


@needs("docker")
def test_docker_accepts_every_command_of_the_pages(record_property):
    commands = pages.of("docker")
    record_property("validated", f"{len(commands)} commands on the launch pages by docker's parser")

    def read(*argv: str) -> str:
        done = subprocess.run([*argv, "--help"], capture_output=True, text=True, timeout=60)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    assert len(commands) == 2
    assert not any(read(*argv) for argv in commands)
    assert "unknown flag" in read("docker", "build", "--fil", "Dockerfile", ".")
