"""Every form of gcloud command that a job on TPU VMs uses, read by gcloud's own parser.

It wants a login for all of them (exit code 1), and says 2 and why to a flag that it does not know, before that. No
network, no account, no configuration of the person's.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest

from lm.launch import tpu_vm
from tests.launch import golden

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        shutil.which("gcloud") is None, reason="gcloud is not installed: its commands are not validated"
    ),
]


def commands() -> dict[str, tuple[str, ...]]:
    """Return one command of each form: a verb and the flags that it is given, those with the most."""
    found = {}
    for target, _, job in golden.cases():
        if target != "tpu-vm" or "refused.txt" in golden.rendered(job):
            continue
        rendering = tpu_vm.render(job)
        node = next(iter(tpu_vm.resources(job)[0].nodes.values()))
        driven = (tpu_vm.describe_node(job, node), tpu_vm.log(job, node, follow=False))
        for command in (*rendering.submit, *rendering.watch, *rendering.stop, *driven):
            verb = next(word for word in command.argv[5:] if not word.startswith("-"))
            flags = [word.partition("=")[0] for word in command.argv if word.startswith("--")]
            found.setdefault(shlex.join([command.argv[4], verb, *flags]), command.argv)
    return {
        form: argv
        for form, argv in found.items()
        if " create " in form or not any(set(form.split()) < set(other.split()) for other in found)
    }


@pytest.fixture(scope="module")
def gcloud(tmp_path_factory):
    """Return a function that runs gcloud as nobody."""
    folder = tmp_path_factory.mktemp("gcloud")
    (folder / "key").touch()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLOUDSDK_", "GOOGLE_APPLICATION"))
    }
    environment |= {"CLOUDSDK_CONFIG": str(folder), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "HOME": str(folder)}

    def run(argv: tuple[str, ...]) -> tuple[int, str]:
        project = () if any(word.startswith("--project=") for word in argv) else ("--project=a-project",)
        done = subprocess.run([*argv, *project], env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr

    return run


def test_gcloud_knows_every_flag_of_every_command(gcloud, record_property):
    forms = commands()
    version = subprocess.run(["gcloud", "version"], capture_output=True, text=True).stdout
    number = re.search(r"Google Cloud SDK (\S+)", version)[1]
    record_property("validated", f"{len(forms)} forms of commands for TPU VMs by gcloud {number}'s parser")
    refused = {}
    for form, argv in forms.items():
        code, said = gcloud(argv)
        if code != 1 or "active account" not in said:
            refused[form] = said
    assert not refused, refused
    assert len(forms) >= 8


@pytest.mark.parametrize("wrong", ["--sopt", "--autocheckpoint-enabledd", "--worker=all"])
def test_gcloud_says_so_if_it_does_not_know_a_flag(gcloud, wrong):
    (argv,) = [
        argv for form, argv in commands().items() if " create " in form and "--spot" in form and "node-id" in form
    ]
    code, said = gcloud((*argv, wrong))
    assert code == 2 and "unrecognized arguments" in said


def test_only_gclouds_alpha_track_knows_what_passes_a_preemption_on(gcloud):
    """The day this fails, the commands can do without alpha."""
    (argv,) = [
        argv for form, argv in commands().items() if " create " in form and "--spot" in form and "node-id" in form
    ]
    code, said = gcloud(tuple(word for word in argv if word != "alpha"))
    assert code == 2 and "autocheckpoint-enabled" in said
