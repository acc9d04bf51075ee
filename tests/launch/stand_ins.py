"""Stand-ins for gcloud, kubectl and Slurm's commands: what they are asked to run, they run, as processes of this machine.

    python stand_ins.py TOOL ARGUMENTS…          as the tool, for the wrappers that `tests.launch.cloud` puts on PATH

A host is a folder of its own under $FAKE_CLOUD; its processes know it by $FAKE_HOST, so that a host can be taken away
with everything on it. What waits for pods or batch scripts to end is a controller, a process that the tool leaves
behind, as a cluster has one. Everything that a tool was asked goes to $FAKE_CLOUD/asked.log.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
POLL = 0.2


# Hosts.


def boot(host: str, argv: list[str], at: str | None = None, **variables: str) -> subprocess.Popen:
    """Start a process on a host, in its home directory or `at` another; what it prints goes to a file there."""
    folder = CLOUD / "hosts" / host
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "console.log").open("ab") as console:
        return subprocess.Popen(
            argv,
            cwd=at or folder,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            env={**os.environ, "FAKE_HOST": host, "HOME": str(folder), **variables},
        )


def processes(host: str) -> list[int]:
    """Return the processes that run on a host."""
    found, mark = [], f"FAKE_HOST={host}\0".encode()
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if mark in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def signal_all(host: str, number: int) -> None:
    for pid in processes(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def take_away(host: str, grace: float = 0.0, only: int | None = None) -> None:
    """End everything on a host: SIGTERM to its first process, or to all, and SIGKILL when the grace is over."""
    if grace:
        for pid in [only] if only else processes(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and processes(host):
            time.sleep(POLL)
    while processes(host):
        signal_all(host, signal.SIGKILL)
        time.sleep(POLL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def together(number: int, count: int, port: int) -> dict[str, str]:
    """Return what tells a host who the others are, in place of a TPU's metadata server."""
    return {"LM_COORDINATOR": f"localhost:{port}", "LM_NUM_PROCESSES": str(count), "LM_PROCESS_ID": str(number)}


def read(path: pathlib.Path) -> dict | None:
    with contextlib.suppress(FileNotFoundError):
        return json.loads(path.read_text())
    return None


def write(path: pathlib.Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def controller(*arguments: str) -> None:
    """Leave a process behind that goes on when the tool has ended."""
    with (CLOUD / "controllers.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def fail(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def flags(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return positional arguments, and flags with their values."""
    positional, found = [], {}
    for argument in argv:
        if argument.startswith("--"):
            name, _, value = argument.removeprefix("--").partition("=")
            found[name] = value
        else:
            positional.append(argument)
    return positional, found


# gcloud: queued resources, and the VMs of their nodes.


def gcloud(argv: list[str]) -> None:
    words, options = flags(argv)
    group, action, names = words[3], words[4], words[5:]
    assert words[:3] == ["alpha", "compute", "tpus"] and "zone" in options, argv
    if group == "queued-resources":
        {"create": _create, "describe": _describe, "delete": _delete}[action](names[0], options)
    elif action == "describe":
        resource = _resource_of(names[0])
        print("READY" if resource["state"] == "ACTIVE" else "PREEMPTED")
    elif action == "scp":
        *files, target = names
        for host in _hosts(target.rstrip(":"), options):
            (CLOUD / "hosts" / host).mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(file, CLOUD / "hosts" / host / file)
    elif action == "ssh":
        node = names[0]
        resource = _resource_of(node)
        for host in _hosts(node, options):
            number = resource["hosts"].index(host)
            known = {} if os.environ.get("FAKE_ALONE") else together(number, len(resource["hosts"]), resource["port"])
            worker = {"HOSTNAME": f"t1v-n-12345678-w-{host.rpartition('.')[2]}"}
            done = boot(host, ["bash", "-c", f"export HOSTNAME={worker['HOSTNAME']}; {options['command']}"], **known)
            if done.wait():
                fail(f"ssh: exit code {done.returncode}", 255)


def _resource_path(name: str) -> pathlib.Path:
    return CLOUD / "resources" / f"{name}.json"


def _create(name: str, options: dict[str, str]) -> None:
    refusals = CLOUD / "refusals"
    left = int(refusals.read_text()) if refusals.exists() else 0
    if left:
        refusals.write_text(str(left - 1))
        fail(
            "ERROR: (gcloud.alpha.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit has been exceeded."
        )
    if _resource_path(name).exists():
        fail("ERROR: (gcloud.alpha.compute.tpus.queued-resources.create) ALREADY_EXISTS")
    kind, _, size = options["accelerator-type"].rpartition("-")
    chips = int(size) // (2 if kind in ("v4", "v5p") else 1)
    prefix = options.get("node-prefix")
    nodes = [f"{prefix}-{n}" for n in range(int(options["node-count"]))] if prefix else [options["node-id"]]
    hosts = [f"{node}.{worker}" for node in nodes for worker in range(max(1, chips // 4))]
    waits = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    write(
        _resource_path(name), {"states": waits, "state": waits[0], "nodes": nodes, "hosts": hosts, "port": free_port()}
    )


def _describe(name: str, options: dict[str, str]) -> None:
    resource = read(_resource_path(name))
    if resource is None:
        fail("ERROR: (gcloud.alpha.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found")
    if resource["states"]:
        resource["state"] = resource["states"].pop(0)
        write(_resource_path(name), resource)
    print(resource["state"])


def _delete(name: str, options: dict[str, str]) -> None:
    resource = read(_resource_path(name))
    if resource is None:
        fail("ERROR: (gcloud.alpha.compute.tpus.queued-resources.delete) NOT_FOUND: Resource was not found")
    for host in resource["hosts"]:
        take_away(host)
        shutil.rmtree(CLOUD / "hosts" / host, ignore_errors=True)
    _resource_path(name).unlink()


def suspend(name: str, grace: float = 0.0) -> None:
    """Take a queued resource away, as Google does with spot capacity."""
    resource = read(_resource_path(name))
    for host in resource["hosts"]:
        take_away(host, grace)
    write(_resource_path(name), {**resource, "states": [], "state": "SUSPENDED"})


def _resource_of(node: str) -> dict:
    for path in (CLOUD / "resources").glob("*.json"):
        resource = read(path)
        if node in resource["nodes"]:
            if resource["state"] != "ACTIVE":
                fail("ERROR: the node is not there", 255)
            return resource
    fail(f"ERROR: NOT_FOUND: {node}", 1)


def _hosts(node: str, options: dict[str, str]) -> list[str]:
    hosts = [host for host in _resource_of(node)["hosts"] if host.rpartition(".")[0] == node]
    return hosts if options["worker"] == "all" else [hosts[int(options["worker"])]]


# kubectl: JobSets.


def kubectl(argv: list[str]) -> None:
    import yaml

    path = lambda name: CLOUD / "jobsets" / f"{name}.json"  # noqa: E731
    if argv[0] == "apply":
        jobset = yaml.safe_load(sys.stdin)
        name = jobset["metadata"]["name"]
        if path(name).exists():
            print(f"jobset.jobset.x-k8s.io/{name} unchanged")
            return
        write(path(name), {"spec": jobset["spec"], "state": "Active"})
        controller("jobset", name)
        print(f"jobset.jobset.x-k8s.io/{name} created")
    elif argv[:2] == ["get", "jobset"]:
        found = read(path(argv[2])) or fail(f'Error from server (NotFound): jobsets "{argv[2]}" not found')
        print(found["state"])
    elif argv[:2] == ["delete", "jobset"]:
        if path(argv[2]).exists():
            write(path(argv[2]), {**read(path(argv[2])), "state": "Deleting"})
            while path(argv[2]).exists():
                time.sleep(POLL)
    else:
        fail(f"the stand-in knows no {argv}", 2)


class Pods:
    """The pods of a JobSet: which process each is, and how it ended."""

    def __init__(self, name: str, spec: dict):
        self.name = name
        (group,) = spec["replicatedJobs"]
        job = group["template"]["spec"]
        self.pod = job["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.names = [(j, i) for j in range(group["replicas"]) for i in range(job["completions"])]
        self.is_gang = job.get("backoffLimit") == 0
        self.wrong = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
        self.grace = self.pod["terminationGracePeriodSeconds"]
        self.running: dict[tuple[int, int], subprocess.Popen] = {}

    def host(self, pod: tuple[int, int]) -> str:
        return f"{self.name}.{pod[0]}.{pod[1]}"

    def start(self, pod: tuple[int, int], port: int) -> None:
        variables = {"JOB_COMPLETION_INDEX": str(pod[1])}
        for each in self.container["env"]:
            variables[each["name"]] = each.get("value", str(pod[0]))
        if self.is_gang:
            variables |= together(self.names.index(pod), len(self.names), port)
        self.running[pod] = boot(self.host(pod), self.container["command"], at=os.environ["FAKE_IMAGE"], **variables)

    def stop(self, pod: tuple[int, int]) -> None:
        take_away(self.host(pod), self.grace, only=self.running[pod].pid)
        self.running.pop(pod).wait()


def jobset(name: str) -> None:
    """Run a JobSet's pods as its controller does."""
    path = CLOUD / "jobsets" / f"{name}.json"
    spec = read(path)["spec"]
    pods, done, restarts, port = Pods(name, spec), set(), 0, free_port()
    for pod in pods.names:
        pods.start(pod, port)
    limit = spec.get("failurePolicy", {}).get("maxRestarts", 10**6)
    while len(done) < len(pods.names):
        time.sleep(POLL)
        if read(path)["state"] == "Deleting":
            for pod in list(pods.running):
                pods.stop(pod)
            path.unlink()
            return
        for pod, process in list(pods.running.items()):
            if process.poll() is None:
                continue
            take_away(pods.host(pod))  # what is left of a pod goes with its first process
            pods.running.pop(pod)
            if process.returncode == 0:
                done.add(pod)
            elif process.returncode in pods.wrong:
                for other in list(pods.running):
                    pods.stop(other)
                write(path, {"spec": spec, "state": "Failed"})
                return
            elif not pods.is_gang:
                pods.start(pod, port)
            elif restarts == limit:
                write(path, {"spec": spec, "state": "Failed"})
                return
            else:
                restarts += 1
                for other in list(pods.running):
                    pods.stop(other)
                done, port = set(), free_port()
                for again in pods.names:
                    pods.start(again, port)
                break
    write(path, {"spec": spec, "state": "Completed"})


# Slurm: batch scripts, their steps, their queue.


def _batch_path(job: str) -> pathlib.Path:
    return CLOUD / "batch" / f"{job}.json"


def _batch_jobs() -> list[str]:
    return [path.stem for path in sorted((CLOUD / "batch").glob("*.json"))]


def sbatch(argv: list[str]) -> None:
    script = sys.stdin.read()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))
    asked = {name: (shlex.split(value) or [""])[0] for name, value in asked.items()}
    number = 100 + len(list((CLOUD / "batch").glob("*"))) if (CLOUD / "batch").exists() else 100
    first, last = map(int, asked["array"].split("-")) if "array" in asked else (0, 0)
    for task in range(first, last + 1):
        job = f"{number}_{task}" if "array" in asked else str(number)
        write(_batch_path(job), {"script": script, "asked": asked, "state": "PENDING", "task": task, "restarts": 0})
        controller("batch", job)
    print(number)


def batch(job: str) -> None:
    """Run a batch script, again as often as it is requeued, as slurmctld does."""
    path = _batch_path(job)
    while True:
        about = read(path)
        variables = {
            "SLURM_JOB_ID": job.replace("_", "0"),
            "FAKE_JOB": job,
            "SLURM_RESTART_COUNT": str(about["restarts"]),
            "SLURM_NNODES": about["asked"]["nodes"],
        }
        if "array" in about["asked"]:
            variables["SLURM_ARRAY_TASK_ID"] = str(about["task"])
        write(path, {**about, "state": "RUNNING"})
        (CLOUD / "hosts" / f"batch.{job}").mkdir(parents=True, exist_ok=True)
        script = CLOUD / "hosts" / f"batch.{job}" / "script"
        script.write_text(about["script"])
        process = boot(f"batch.{job}", ["bash", str(script)], **variables)
        while process.poll() is None and read(path)["state"] == "RUNNING":
            time.sleep(POLL)
        about = read(path)
        end_of_job(job, about, grace=0.0 if about["state"] == "REQUEUED" else 1.0)
        process.wait()
        if about["state"] != "REQUEUED":
            write(
                path, {**about, "state": "CANCELLED" if about["state"] == "CANCELLED" else f"EXIT {process.returncode}"}
            )
            return
        write(path, {**about, "restarts": about["restarts"] + 1})


def end_of_job(job: str, about: dict, grace: float) -> None:
    for node in range(int(about["asked"]["nodes"])):
        take_away(f"node.{job}.{node}", grace)
    take_away(f"batch.{job}", grace)


def srun(argv: list[str]) -> None:
    """Run a command as one task per node; with --kill-on-bad-exit the first bad end ends all."""
    command = [argument for argument in argv if not argument.startswith("--")]
    job, count = os.environ["FAKE_JOB"], int(os.environ["SLURM_NNODES"])
    port = free_port()
    tasks = [
        boot(
            f"node.{job}.{number}",
            command,
            at=os.getcwd(),
            SLURM_PROCID=str(number),
            **(together(number, count, port) if count > 1 else {}),
        )
        for number in range(count)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [signal_all(f"node.{job}.{n}", signal.SIGTERM) for n in range(count)])
    code = 0
    while any(task.poll() is None for task in tasks) or not code:
        ended = [task.returncode for task in tasks if task.poll() is not None]
        bad = [each for each in ended if each]
        if bad:
            code = bad[0] if bad[0] > 0 else 128 - bad[0]
            for number in range(count):
                take_away(f"node.{job}.{number}", 5.0)
        if len(ended) == count:
            break
        time.sleep(POLL)
    sys.exit(code)


def _by_name(argv: list[str]) -> list[str]:
    (name,) = [argument.partition("=")[2] for argument in argv if argument.startswith("--name=")]
    return [job for job in _batch_jobs() if read(_batch_path(job))["asked"]["job-name"] == name]


def squeue(argv: list[str]) -> None:
    for job in _by_name(argv):
        state = read(_batch_path(job))["state"]
        if state in ("PENDING", "RUNNING", "REQUEUED"):
            print(job, state)


def scancel(argv: list[str]) -> None:
    for job in _by_name(argv):
        about = read(_batch_path(job))
        if about["state"] in ("PENDING", "RUNNING"):
            write(_batch_path(job), {**about, "state": "CANCELLED"})


def scontrol(argv: list[str]) -> None:
    job = os.environ["FAKE_JOB"]
    about = read(_batch_path(job))
    if argv[0] == "show":
        print(f"JobId={job} JobState={about['state']} Restarts={about['restarts']}")
    elif argv[0] == "requeue":
        write(_batch_path(job), {**about, "state": "REQUEUED"})


def preempt_job(job: str, grace: float) -> None:
    """Preempt a batch job: SIGTERM to its tasks, then an end, and back into the queue."""
    about = read(_batch_path(job))
    for node in range(int(about["asked"]["nodes"])):
        take_away(f"node.{job}.{node}", grace)
    about = read(_batch_path(job))
    if about["state"] == "RUNNING":
        write(_batch_path(job), {**about, "state": "REQUEUED"})


TOOLS = {function.__name__: function for function in (gcloud, kubectl, sbatch, srun, squeue, scancel, scontrol)}
CONTROLLERS = {"jobset": jobset, "batch": batch}

if __name__ == "__main__":
    tool, *given = sys.argv[1:]
    with (CLOUD / "asked.log").open("a") as asked_log:
        asked_log.write(shlex.join([tool, *given]) + "\n")
    if tool in CONTROLLERS:
        CONTROLLERS[tool](*given)
    else:
        TOOLS[tool](given)
