"""The target `local`: the job's processes on this machine, started again as on a cluster.

`cpu:4` is one process with four simulated devices, `2*cpu:4` two that train together; `here` is whatever this machine has.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from lm.errors import LmError, Preempted, UsageError
from lm.launch.accelerators import CPU, HERE
from lm.launch.job import Job
from lm.launch.render import Command, Rendering, environment_of, worker_command
from lm.launch.worker import HOST

OPTIONS: Mapping[str, str] = {}
_PAUSE_SECONDS = (0.0, 1.0, 2.0, 5.0, 15.0, 60.0)  # before a restart, by how many quick failures came before in a row
_STEADY_SECONDS = 600.0  # after which an attempt was no quick failure
_POLL_SECONDS = 0.1


def render(job: Job) -> Rendering:
    """Return what `run` does, as commands.

    Raises:
      UsageError: the topology is other hardware.
    """
    if job.accelerator.family not in (CPU, HERE):
        raise UsageError(f"--topology {job.topology}: this machine is here, or cpu:N with N simulated devices.")
    commands = [
        Command(
            f"process {number}",
            ("env", *(f"{name}={value}" for name, value in process_environment(job, number, "PORT").items()))
            + worker_command(job),
        )
        for number in range(job.accelerator.copies)
    ]
    return Rendering(
        files={},
        submit=tuple(commands),
        watch=(Command("the log", ("lm", "launch", "logs", job.workdir, "--name", job.name, "--follow")),),
        stop=(Command("stop", ("lm", "launch", "stop", job.workdir, "--name", job.name)),),
        notes=("in the foreground; started again after a preemption or a crash that left progress",),
    )


def process_environment(job: Job, number: int, port: str) -> dict[str, str]:
    """Return the variables of one of the job's processes."""
    accelerator = job.accelerator
    variables = {HOST: f"{number}-0", **environment_of(job)}
    if accelerator.copies > 1 and not job.is_sweep:
        variables |= {
            "LM_COORDINATOR": f"localhost:{port}",
            "LM_NUM_PROCESSES": str(accelerator.copies),
            "LM_PROCESS_ID": str(number),
        }
    if accelerator.family != CPU:
        return variables
    variables.setdefault("JAX_PLATFORMS", "cpu")
    if accelerator.devices_per_host > 1:
        flag = f"--xla_force_host_platform_device_count={accelerator.devices_per_host}"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))} {flag}".strip()
    return variables


def run(job: Job, note: Callable[[str], None]) -> int:
    """Run a job's processes until it is done, and return the exit code: 0, 1 or 2, or 42 when this was stopped.

    SIGTERM and Ctrl-C are passed on, once: the processes save and end.
    """
    stopping: list[int] = []
    children: list[subprocess.Popen] = []

    def stop(number: int, _frame) -> None:
        stopping.append(number)
        for child in children:
            child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    quick = 0
    try:
        while True:
            began = time.monotonic()
            children[:] = _start(job)
            if stopping:  # meanwhile, when there was nobody to tell
                stop(stopping[0], None)
            code = _verdict([child.wait() for child in children])
            if code != Preempted.exit_code or stopping:
                return code
            quick = 0 if time.monotonic() - began > _STEADY_SECONDS else quick
            pause = _PAUSE_SECONDS[min(quick, len(_PAUSE_SECONDS) - 1)]
            quick += 1
            note(f"started again{f' in {pause:.0f} s' if pause else ''}")
            deadline = time.monotonic() + pause
            while time.monotonic() < deadline and not stopping:
                time.sleep(_POLL_SECONDS)
            if stopping:
                return code
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: Job) -> list[subprocess.Popen]:
    port = str(_free_port())
    return [
        subprocess.Popen(
            worker_command(job, sys.executable),
            env=os.environ | process_environment(job, number, port),
            start_new_session=True,
        )
        for number in range(job.accelerator.copies)
    ]


def _verdict(codes: list[int]) -> int:
    """Return what the codes of all processes mean: one that is wrong outweighs those that it took along."""
    wrong = [code for code in codes if code in (1, 2)]
    if wrong:
        return max(wrong)
    return 0 if not any(codes) else Preempted.exit_code


def _free_port() -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("localhost", 0))
        except OSError as error:
            raise LmError(f"cannot open a port on this machine: {error}.") from error
        return probe.getsockname()[1]
