"""Several hosts: two processes with four devices each, over gloo, are one run."""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from lm.checkpoint.layout import finished_steps, unfinished
from lm.commands import cluster
from lm.commands.supervisor import reason_of_abort
from lm.errors import UsageError
from tests.commands.runs import XLA_FLAGS, files, finish, records, start

HEARTBEAT = 10
DEVICES = 8

# One process whose eight devices talk through gloo, as those of two do: its sums are then the same bit for bit.
ONE = """
import socket, sys
import jax
from lm.__main__ import main
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_enable_preemption_service", False)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
sys.exit(main(sys.argv[1:]))
"""


class SlowSink:
    """A sink that gives signals time to arrive before the run is over."""

    def __init__(self, config, workdir, first_step): ...

    def write(self, record) -> None:
        time.sleep(0.2)

    def flush(self) -> None: ...

    def close(self) -> None: ...


SLOW = "--config.log.sinks=tests.commands.test_hosts:SlowSink"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_hosts(count: int, *arguments: object, own: dict[int, tuple] | None = None) -> list[subprocess.Popen]:
    """Start `lm train` on each of `count` hosts, which share eight devices; `own`: further arguments of one."""
    flags = f"{XLA_FLAGS} --xla_force_host_platform_device_count={DEVICES // count}"
    if count == 1:
        return [start("train", *arguments, code=ONE, XLA_FLAGS=flags)]
    port = free_port()
    return [
        start(
            "train",
            *arguments,
            *(f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}", f"--process-id={i}"),
            f"--config.parallel.heartbeat_seconds={HEARTBEAT}",
            *(own or {}).get(i, ()),
            XLA_FLAGS=flags,
        )
        for i in range(count)
    ]


@pytest.fixture
def hosts(config, tmp_path):
    """Start a run in `tmp_path/run` on one host or more."""
    started = []

    def run(count: int, *arguments: object, workdir: object = None, own=None) -> list[subprocess.Popen]:
        where = f"--config={config}", f"--workdir={workdir or tmp_path / 'run'}"
        processes = start_hosts(count, *where, *arguments, own=own)
        started.extend(processes)
        return processes

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(workdir)}


def all_done(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    return [finish(process) for process in processes]


def wait_for_step(workdir: pathlib.Path, step: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 200
    while step not in losses(workdir):
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.02)


MESHES = {  # over both hosts, and within each
    "fsdp": ("--config.parallel.fsdp=8", "--config.log.sample_prompts=('abc',)", "--config.log.sample_tokens=8"),
    "fsdp and data": ("--config.parallel.fsdp=2",),
}


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """Return the folder of a run on one host, by mesh; made when asked for."""
    done = {}

    def run(mesh: str) -> pathlib.Path:
        if mesh not in done:
            workdir = tmp_path_factory.mktemp("one") / "run"
            ((code, _, err),) = all_done(start_hosts(1, f"--config={config}", f"--workdir={workdir}", *MESHES[mesh]))
            assert code == 0, err
            done[mesh] = workdir
        return done[mesh]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_two_hosts_have_the_losses_of_one_bit_for_bit(hosts, undisturbed, tmp_path, mesh):
    first, second = all_done(hosts(2, *MESHES[mesh], "--json"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    run, one = tmp_path / "run", undisturbed(mesh)
    assert losses(run) == losses(one)
    assert files(run / "samples") == files(one / "samples")
    assert records(run, "eval")[-1]["loss"] == records(one, "eval")[-1]["loss"]
    assert first[1].count("\n") == 1 and first[1].startswith("{"), "the result, and nothing of C++ libraries"
    assert second[1] == "" and second[2].count("\n") == 1, "one host speaks for all"
    assert set(files(run)) >= {"config.json", "metrics.jsonl", "log.txt", "report.html"}
    assert finished_steps(str(run / "checkpoints")) == finished_steps(str(one / "checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "number", "after"), [(2, signal.SIGTERM, 1), (1, signal.SIGTERM, 2), (2, signal.SIGINT, 2)]
)
def test_a_signal_to_one_host_stops_all_at_one_step_and_any_number_of_hosts_continues(
    hosts, undisturbed, tmp_path, before, number, after
):
    run, mesh = tmp_path / "run", "fsdp and data"
    processes = hosts(before, *MESHES[mesh], SLOW)
    wait_for_step(run, 4, processes)
    processes[-1].send_signal(number)
    ends = all_done(processes)
    assert [code for code, *_ in ends] == [42] * before, ends
    steps = {re.search(r"stopped by .* at step (\d+), saved", err)[1] for *_, err in ends}
    assert steps == {str(finished_steps(str(run / "checkpoints"))[-1])}
    assert not any("Traceback" in err for *_, err in ends)
    ends = all_done(hosts(after, *MESHES[mesh]))
    assert [code for code, *_ in ends] == [0] * after, ends
    assert f"resumed at step {steps.pop()}" in (run / "log.txt").read_text()
    assert losses(run) == losses(undisturbed(mesh))


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_host_that_dies_ends_the_others_in_one_line_and_the_command_continues(hosts, undisturbed, tmp_path, dead):
    run, mesh = tmp_path / "run", "fsdp and data"
    processes = hosts(2, *MESHES[mesh], SLOW)
    wait_for_step(run, 9, processes)  # the checkpoint of step 8 may be on its way
    processes[dead].kill()
    killed = time.monotonic()
    code, _, err = finish(processes[1 - dead])
    seconds = time.monotonic() - killed
    print(f"the other host ended {seconds:.1f} s after the kill")
    assert code == 42, err
    assert seconds < 15  # the service's own clock: 10 s without a heartbeat
    assert "Traceback" not in err and "Check failure" not in err
    last = err.splitlines()[-1]
    died = "process 0 of 2, the coordinator, died" if dead == 0 else "process 1 of 2 died (no heartbeat for 10 s)"
    assert last.startswith(f"lm: {died}")
    assert "the same command" in last
    ends = all_done(hosts(2, *MESHES[mesh]))
    assert [code for code, *_ in ends] == [0, 0], ends
    assert losses(run) == losses(undisturbed(mesh))
    assert unfinished(str(run / "checkpoints")) == []


@pytest.mark.slow
def test_hosts_with_different_configs_are_refused(hosts, tmp_path):
    ends = all_done(hosts(2, own={1: ("--config.checkpoint.every_steps=7",)}))
    assert [code for code, *_ in ends] == [2, 2], ends
    assert all("config.checkpoint.every_steps" in err.splitlines()[-1] for *_, err in ends)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_what_one_host_refuses_ends_all_with_its_exit_code(hosts, tmp_path):
    from lm.storage import locked

    (tmp_path / "run").mkdir()
    with locked(str(tmp_path / "run")):
        ends = all_done(hosts(2))
    assert [code for code, *_ in ends] == [2, 2], ends
    assert all("another process uses" in err.splitlines()[-1] for *_, err in ends)


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer_is_one_line_and_may_be_tried_again(config, tmp_path):
    others = f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2", "--process-id=1"
    where = f"--config={config}", f"--workdir={tmp_path / 'run'}"
    code, out, err = finish(start("train", *where, *others, "--config.parallel.startup_seconds=2"))
    assert code == 42, err
    assert out == ""
    assert err.startswith("lm: not all hosts came") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--coordinator=host:1",), "--num-processes and --process-id missing"),
        (("--coordinator=host", "--num-processes=2", "--process-id=0"), "expected HOST:PORT"),
        (("--coordinator=host:1", "--num-processes=2", "--process-id=2"), "expected 0 to 1"),
        (("--coordinator=host:1", "--num-processes=0", "--process-id=0"), "expected 1 or more"),
        (("--coordinator=host:1", "--num-processes=two", "--process-id=0"), "invalid int"),
    ],
)
def test_wrong_options_are_refused(train, tmp_path, options, said):
    done = train(tmp_path / "run", *options)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()


def named(**environment: str) -> cluster.Cluster | None:
    options = argparse.Namespace(coordinator=None, num_processes=None, process_id=None)
    return cluster.named(options, environment)


def test_the_environment_names_hosts_too():
    ours = {"LM_COORDINATOR": "a:1", "LM_NUM_PROCESSES": "4"}
    assert named(**ours, LM_PROCESS_ID="3") == cluster.Cluster("a:1", 4, 3)
    assert named(**ours, JOB_COMPLETION_INDEX="2") == cluster.Cluster("a:1", 4, 2)
    assert named(JOB_COMPLETION_INDEX="2") is None
    with pytest.raises(UsageError, match="LM_PROCESS_ID=x"):
        named(**ours, LM_PROCESS_ID="x")


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, True),
        ({"JOB_COMPLETION_INDEX": "0"}, False),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
    ],
    ids=str,
)
def test_a_process_is_watched_over_where_it_may_be_one_of_several(environment, several):
    assert cluster.may_have_hosts(None, {"JAX_PLATFORMS": "cpu", **environment}) == several
    assert not cluster.may_have_hosts(cluster.Cluster("a:1", 1, 0), environment)


def test_jax_finds_the_hosts_of_a_slurm_step(monkeypatch):
    step = {
        "SLURM_JOB_ID": "12", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2",
    }  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    assert cluster._detected_several()
    assert cluster._local_devices(None, os.environ) == [], "one task per node has all the node's GPUs"
    assert cluster._local_devices(None, {**os.environ, "JAX_LOCAL_DEVICE_IDS": "0,1"}) is None
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    assert cluster._local_devices(None, os.environ) is None, "two tasks on a node share them"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not cluster._detected_several()


def test_jax_finds_the_hosts_of_a_tpu_pod(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
    assert cluster._detected_several()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a")
    assert not cluster._detected_several()


def test_a_pod_of_an_indexed_job_does_not_train_alone_unasked(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="LM_NUM_PROCESSES=1"):
        cluster._detected_several()
    assert not cluster.may_have_hosts(named(LM_NUM_PROCESSES="1"), os.environ)


def test_the_parent_of_a_process_among_several_never_imports_jax():
    code = "import sys, lm.__main__, lm.commands.train, lm.commands.supervisor; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FATAL = "F1125 21:11:26.863987    4707 client.h:80] Terminating process because the JAX distributed service detected fatal errors. "


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks", "process 1 of 4 died (no heartbeat for 30 s)"),
        ("(stopped sending heartbeats):\n1\n3\nThe tasks have crashed.", "processes 1, 3 of 4 died"),
        ("(stopped sending heartbeats):\n/job:jax_worker/replica:0/task:2\nThe tasks", "process 2 of 4 died"),
        ("UNAVAILABLE: Failed to send RPC to coordination service.", "process 0 of 4, the coordinator, died"),
        ("INTERNAL: Shutdown barrier has failed.", "another of 4 processes ended"),
    ],
)  # fmt: skip
def test_the_reason_of_an_abort_is_read_from_its_log(log, reason):
    announcement = "lm: process 0 of 4, heartbeat timeout 30 s"
    assert cluster.ANNOUNCEMENT.search(announcement)
    assert reason_of_abort(FATAL + log, announcement).startswith(reason)
    assert reason_of_abort(log, announcement) == "", "some other abort"
