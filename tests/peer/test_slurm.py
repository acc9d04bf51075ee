"""Our batch scripts on a Slurm of fourteen nodes that the test starts on this machine: read by sbatch, and run.

Needs Debian's slurm-wlm. Nothing but the loopback address is used; the nodes' GPUs are empty files.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import tarfile
import time

import pytest

from lm.launch import slurm
from lm.launch.job import Job, named
from tests.launch import golden

pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "sbatch", "munged")),
        reason="Slurm (slurm-wlm) is not installed: batch scripts are not validated",
    ),
]

NODES = 14
CONFIG = """\
ClusterName=lm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=gpus Nodes=n[1-10] Default=YES
PartitionName=low Nodes=n[11-12] PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[11-12] PriorityTier=2 PreemptMode=OFF
PartitionName=cpus Nodes={host},{host}x PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={host},{host}x PriorityTier=2 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=128 RealMemory=2000000 "
    "Gres=gpu:h100:8 Feature=h100"
)


class Cluster:
    def __init__(self, folder):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def run(self, *argv: str, text: str = "") -> subprocess.CompletedProcess:
        """Run one of Slurm's commands with a script as its input."""
        return subprocess.run(argv, input=text, env=self.environment, capture_output=True, text=True, timeout=60)

    def show(self, number: str) -> dict[str, str]:
        """Return what Slurm says of a job."""
        words = self.run("scontrol", "show", "job", "--oneliner", number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str) -> dict[str, str]:
        for _ in range(600):
            job = self.show(number)
            if job["JobState"] in states:
                return job
            time.sleep(0.2)
        raise AssertionError(f"{job}\n{(self.folder / 'slurmctld.log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start munge, slurmctld and a slurmd per node, and end them."""
    folder = tmp_path_factory.mktemp("slurm")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(NODES + 1)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    # Of the first two this machine knows the first one's name: it is process 0's address.
    names = [host, f"{host}x", *(f"n{number}" for number in range(1, NODES - 1))]
    nodes = "\n".join(NODE.format(name=n, host=host, port=port) for n, port in zip(names, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=user, ports=ports, nodes=nodes))
    (folder / "gres.conf").write_text(f"Name=gpu Type=h100 File={folder}/gpu[0-7]\n")
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    one = Cluster(folder)
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    daemons = [munge, ["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", name] for name in names)]
    started = []
    try:
        for argv in daemons:
            if argv[0] == "slurmd":
                (folder / "spool" / argv[-1]).mkdir(parents=True)
            with open(folder / "daemons.log", "a") as log:
                started.append(subprocess.Popen(argv, env=one.environment, stdout=log, stderr=log))
            while argv is munge and not (folder / "munge.socket").exists():
                time.sleep(0.05)
        for _ in range(300):
            assert all(process.poll() is None for process in started), (folder / "slurmctld.log").read_text()[-2000:]
            if len(set(one.run("sinfo", "-N", "--noheader", "--states=idle", "--format=%N").stdout.split())) == NODES:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(one.run("sinfo", "-N", "-l").stdout + (folder / "slurmctld.log").read_text()[-2000:])
        reserved = ["reservation=a-reservation", f"users={user}", "nodes=n[9-10]", "starttime=now", "duration=60"]
        assert one.run("scontrol", "create", *reserved).returncode == 0
        yield one
    finally:
        one.run("scancel", f"--user={user}")
        for _ in range(100):
            if not one.run("squeue", "--noheader").stdout:
                break
            time.sleep(0.1)
        for process in reversed(started):
            process.terminate()
        time.sleep(1)
        for process in started:  # a slurmd may wait for the controller to acknowledge a job's end
            process.kill()
            process.wait()


def test_sbatch_would_start_every_job(cluster, record_property):
    version = cluster.run("sbatch", "--version").stdout.split()[-1]
    jobs = [one for target, _, one in golden.cases() if target == "slurm" and "refused.txt" not in golden.rendered(one)]
    record_property("validated", f"{len(jobs)} batch scripts by sbatch {version} --test-only on {NODES} nodes")
    for one in jobs:
        done = cluster.run("sbatch", "--test-only", text=slurm.script(one))
        assert done.returncode == 0 and "to start at" in done.stderr, f"{one.topology} {one.arguments}: {done.stderr}"
    assert len(jobs) > 6


def test_sbatch_refuses_what_it_does_not_know_or_cannot_give(cluster):
    text = slurm.script(named(golden.job_of("slurm", "h100:64", "train")))
    for wrong in (text.replace("--requeue", "--requeeue"), text.replace("--nodes=8", "--nodes=80")):
        assert wrong != text and cluster.run("sbatch", "--test-only", text=wrong).returncode != 0


# Real runs: all are submitted at once, and each test looks at one. A worker's stand-in follows a plan.

STAND_IN = """#!/bin/bash
echo "$LM_LAUNCH_HOST restart ${SLURM_RESTART_COUNT:-0}: $*" >> "${@: -1}/seen"
wait_for_the_word() { trap 'sleep 1; exit 42' TERM; for i in $(seq 300); do sleep 0.2; done; }
source "${@: -1}/plan"
"""
PLANS = {
    "preempted": ("h100:16", "train", '[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0; wait_for_the_word'),
    "stopped in order": ("h100:16", "train", '[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0; exit 42'),
    "killed": ("h100:8", "train", '[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0; kill -9 $$'),
    "wrong": ("h100:16", "train", '[ "$LM_LAUNCH_HOST" = 0-1 ] && exit 2; wait_for_the_word'),
    "cancelled": ("h100:8", "train", "wait_for_the_word"),
    "sweep": ("h100:16", "sweep", "exit 0"),
}


@pytest.fixture(scope="module")
def submitted(cluster):
    """Return every plan's job and its number."""
    stand_in = cluster.folder / "stand_in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    found = {}
    for name, (topology, verb, plan) in PLANS.items():
        options = {"python": str(stand_in), **({"partition": "low"} if name == "preempted" else {})}
        workdir = str(cluster.folder / name.replace(" ", "-"))
        job = Job((verb, "--config", "x.py"), "slurm", topology, workdir, commit="0" * 40, options=options)
        found[name] = (named(job), submit(cluster, named(job), plan))
    for name in ("preempted", "cancelled"):  # once their hosts are there
        job, number = found[name]
        for _ in range(300):
            if len(seen(job)) == job.accelerator.hosts:
                break
            time.sleep(0.1)
        if name == "preempted":
            cluster.run(
                "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", text="#!/bin/sh\n"
            )
        else:
            found["the same again"] = job, submit(cluster, job, plan=None)
            assert cluster.show(found["the same again"][1])["Dependency"].startswith("singleton")
            cluster.run("scancel", number)
    return found


def submit(cluster: Cluster, job: Job, plan: str | None) -> str:
    """Do what `lm launch` does, and return the job's number."""
    here = cluster.folder / "submit"
    here.mkdir(exist_ok=True)
    rendering = slurm.render(job)
    folder = pathlib.Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if plan is not None:
        (folder / "plan").write_text(plan)
    with tarfile.open(folder / "code.tar.gz", "w:gz") as archive:
        archive.add(here, "lm")
    for name, text in rendering.files.items():
        (here / name).write_text(text)
    for command in rendering.submit:
        text = (here / command.stdin).read_text() if command.stdin else ""
        done = cluster.run(*command.argv, text=text)
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def seen(job: Job) -> list[str]:
    path = pathlib.Path(job.folder, "seen")
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("name", ["preempted", "stopped in order", "killed"])
def test_a_job_that_was_preempted_stopped_or_lost_a_host_comes_back_and_is_done(cluster, submitted, name):
    job, number = submitted[name]
    state = cluster.wait(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("COMPLETED", "1", "0:0")
    hosts = {
        f"0-{i} restart {n}: -m lm launch worker {job.folder}" for i in range(job.accelerator.hosts) for n in (0, 1)
    }
    assert set(seen(job)) == hosts


def test_a_host_that_says_that_there_is_no_use_ends_the_job_with_its_code(cluster, submitted):
    job, number = submitted["wrong"]
    state = cluster.wait(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("FAILED", "0", "2:0")
    assert len(seen(job)) == 2


def test_a_cancelled_job_is_told_saves_and_stays_away(cluster, submitted):
    job, number = submitted["cancelled"]
    state = cluster.wait(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0")
    assert pathlib.Path(job.folder, "slurm", f"ends.{number}.0", "0-0").read_text() == "42\n"
    assert sum("restart 0" in line for line in seen(job)) == 2  # the same job, submitted twice, then had its turn
    cluster.run("scancel", submitted["the same again"][1])


def test_the_workers_of_a_sweep_are_tasks_of_one_array(cluster, submitted):
    job, number = submitted["sweep"]
    for task in range(2):
        assert cluster.wait(f"{number}_{task}", "COMPLETED")["ExitCode"] == "0:0"
    assert {line.split()[0] for line in seen(job)} == {"0-0", "0-1"}
