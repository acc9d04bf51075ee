"""TPU VMs: what is asked for, and what a host's script does when it runs."""

import dataclasses
import os
import signal
import subprocess
import tarfile
import time

import pytest

from lm.errors import UsageError
from lm.launch import tpu_vm
from lm.launch.job import Job, named
from tests.launch.golden import job_of


def job(topology: str = "v5e:4x4", verb: str = "train", **changes) -> Job:
    changes["options"] = {"zone": "us-east5-b", **changes.get("options", {})}
    return named(dataclasses.replace(job_of("tpu-vm", topology, verb), **changes))


# What is asked for


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topology": "h100:8"}, "TPUs only"),
        ({"options": {}}, "--option zone="),
        ({"reservation": "ours"}, "exclude each other"),
        ({"workdir": "runs/llama"}, "a bucket"),
    ],
)
def test_what_tpu_vms_cannot_do_is_refused_in_one_line(changes, said):
    refused = named(dataclasses.replace(job_of("tpu-vm", "v5e:4x4", "train"), **changes))
    with pytest.raises(UsageError, match=said) as caught:
        tpu_vm.render(refused)
    assert "\n" not in str(caught.value)


def test_slices_that_train_together_are_one_request_and_those_of_a_sweep_one_each():
    together = tpu_vm.resources(job("2*v6e:16x16"))
    apart = tpu_vm.resources(job("2*v6e:16x16", "sweep"))
    assert [list(resource.nodes) for resource in together] == [[0, 1]]
    assert [list(resource.nodes) for resource in apart] == [[0], [1]]
    assert len({node for resource in (*together, *apart) for node in resource.nodes.values()}) == 4


def test_reserved_capacity_is_not_asked_for_as_spot():
    argv = tpu_vm.render(job(spot=False, reservation="ours")).submit[0].argv
    assert "--spot" not in argv and {"--reserved", "--reservation=ours"} <= set(argv)


def test_hosts_are_told_before_a_maintenance_unless_their_generation_cannot():
    flag = "--autocheckpoint-enabled"
    assert flag in tpu_vm.render(job()).submit[0].argv
    assert flag not in tpu_vm.render(job(options={"autocheckpoint": "false"})).submit[0].argv


# What a host runs


class Host:
    """A home directory with the job's files, and stand-ins for the programs that the script calls."""

    def __init__(self, folder, one: Job, python: str, hostname: str = "t1v-n-0a1b2c3d-w-5"):
        self.home = folder / "home"
        programs = folder / "bin"
        self.home.mkdir()
        programs.mkdir()
        (self.home / "run.sh").write_text(tpu_vm.render(one).files["run.sh"])
        (folder / "README.md").write_text("the code")
        with tarfile.open(self.home / "code.tar.gz", "w:gz") as archive:
            archive.add(folder / "README.md", "README.md")
        for name, text in {"python": python, "sleep": "exit 0", "python3": "exit 0"}.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        self.environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.home), "HOSTNAME": hostname}

    def start(self, number: int = 0, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "run.sh", str(number)],
            cwd=self.home,
            env=self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, number: int = 0, **more: str) -> tuple[int, list[str]]:
        process = self.start(number, **more)
        out, _ = process.communicate(timeout=30)
        return process.returncode, out.splitlines()


SAYS = 'echo "$LM_LAUNCH_HOST $* in $PWD"'
# Each start takes the next code of ~/codes; 300 + N: dies by signal N.
NEXT = 'read -r code < ~/codes; sed -i 1d ~/codes; [ "$code" -lt 300 ] || kill -"$((code - 300))" $$; exit "$code"'


def test_a_host_runs_the_worker_on_the_jobs_code_and_knows_who_it_is(tmp_path):
    one = job(install="", environment={"NOTE": "two words"})
    code, lines = Host(tmp_path, one, SAYS + '; cat README.md; echo "$NOTE $PYTHONPATH"').run(3)
    folder = f"{tmp_path}/home/code-0123456789ab"
    assert code == 0
    assert lines[0] == f"3-5 -m lm launch worker {one.folder} in {folder}"
    assert lines[1] == f"the codetwo words {folder}"


def test_without_a_number_in_its_name_a_host_is_what_the_tpus_variable_says(tmp_path):
    host = Host(tmp_path, job(install=""), SAYS, hostname="vm")
    assert host.run(1, TPU_WORKER_ID="7")[1][0].startswith("1-7 ")
    assert host.run(1)[1][0].startswith("1-0 ")


@pytest.mark.parametrize("last", [0, 1, 2, 127])
def test_a_worker_starts_again_after_42_and_death_by_signal_and_never_after_anything_else(tmp_path, last):
    host = Host(tmp_path, job(install=""), NEXT)
    (host.home / "codes").write_text(f"42\n309\n306\n42\n{last}\n42\n")
    code, lines = host.run()
    assert code == last
    assert [int(line.split()[-1]) for line in lines if "host 0-5: exit" in line] == [42, 137, 134, 42, last]


def pid_of_worker(host: Host) -> int:
    """Wait for the worker's stand-in to say who it is."""
    path = host.home / "pid"
    for _ in range(1000):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError("no worker came")


def test_a_machine_that_goes_does_not_start_its_worker_again(tmp_path):
    steps = "trap 'exit 42' TERM; echo $$ > ~/pid; while :; do /bin/sleep 0.05; done"
    host = Host(tmp_path, job(install=""), steps)
    process = host.start()
    worker = pid_of_worker(host)
    process.send_signal(signal.SIGTERM)  # init's shutdown tells all processes: first the script, then the worker
    time.sleep(0.1)
    assert process.poll() is None
    os.kill(worker, signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 42 and out.count("exit 42") == 1


def test_a_second_start_does_nothing_while_the_first_runs_or_its_worker_is_left(tmp_path):
    host = Host(tmp_path, job(install=""), "[ -e ~/pid ] && exit 0; echo $$ > ~/pid; exec /bin/sleep 30")
    first = host.start()
    worker = pid_of_worker(host)
    assert host.run() == (0, ["runs already"])
    first.kill()
    first.wait()
    assert host.run() == (0, ["runs already"])
    os.kill(worker, signal.SIGKILL)
    for _ in range(100):  # until it is dead
        if (lines := host.run()[1]) != ["runs already"]:
            break
    assert len(lines) == 1 and lines[0].endswith("host 0-5: exit 0")


def test_code_is_installed_once_per_commit_and_tried_three_times(tmp_path):
    install = "echo installing; [ -e ~/works ]"
    host = Host(tmp_path, job(install=install), SAYS)
    code, lines = host.run()
    assert code == 1 and lines.count("installing") == 3 and lines[-1] == "installing failed (3 of 3)"
    (host.home / "works").touch()
    assert host.run()[1].count("installing") == 1
    assert host.run()[1].count("installing") == 0


def test_a_container_gets_the_environment_and_who_it_is(tmp_path):
    text = tpu_vm.script(job(image="europe-docker.pkg.dev/p/lm:1", environment={"NOTE": "two words"}))
    host = Host(tmp_path, job(image="europe-docker.pkg.dev/p/lm:1", environment={"NOTE": "two words"}), "exit 1")
    for name in ("sudo", "gcloud"):
        (tmp_path / "bin" / name).write_text('#!/bin/bash\necho "$0" "$@" | sed "s=.*bin/=="\n')
        (tmp_path / "bin" / name).chmod(0o755)
    code, lines = host.run(2)
    assert code == 0, text
    assert lines[0].startswith("sudo docker login") and "https://europe-docker.pkg.dev" in lines[0]
    assert "--env=NOTE=two words --env=LM_LAUNCH_HOST=2-5 europe-docker.pkg.dev/p/lm:1 python -m lm launch" in lines[1]
