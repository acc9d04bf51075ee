"""Our command lines and our table of accelerators against xpk itself, which renders its JobSet without a cluster.

Its pins are its own, so it has an environment of its own, made here (about a minute).
"""

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from lm.launch import gke, xpk
from lm.launch.accelerators import GPUS, TPUS, parse
from tests.launch import golden

pytestmark = [pytest.mark.peer, pytest.mark.slow]

VERSION = "1.16.0"
JOBS = {
    name: job for target, name, job in golden.cases() if target == "xpk" and "refused.txt" not in golden.rendered(job)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an environment `env` that has xpk."""
    folder = tmp_path_factory.mktemp("xpk")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=300)
    pip = [
        str(folder / "env" / "bin" / "pip"),
        "install",
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        f"xpk=={VERSION}",
    ]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.skip(f"xpk {VERSION} cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    return folder


def run(folder, argv: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HOME": str(folder), "PATH": f"{folder}/env/bin:{os.environ['PATH']}"}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def manifest(folder, command) -> dict:
    """Return the JobSet that xpk makes of a command."""
    path = folder / "manifest.yaml"
    done = run(folder, [*command.argv, "--dry-run", "--skip-validation", f"--output-manifest-file={path}"])
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", JOBS)
def test_xpk_makes_of_our_command_the_jobset_that_we_would(folder, name, record_property):
    job = JOBS[name]
    rendering = xpk.render(job)
    theirs = manifest(folder, rendering.submit[-1])
    record_property("validated", f"{len(JOBS)} jobs by xpk {VERSION} workload create --dry-run")
    ours = gke.jobset(job)
    assert theirs["metadata"]["name"] in (job.name, f"{job.name}-{len(rendering.submit) - 1}")
    (their_group,), (our_group,) = theirs["spec"]["replicatedJobs"], ours["spec"]["replicatedJobs"]
    their_job, our_job = their_group["template"]["spec"], our_group["template"]["spec"]
    assert their_group["replicas"] == our_group["replicas"]
    assert their_job["parallelism"] * len(rendering.submit) == our_job["parallelism"]
    assert their_job["completions"] * len(rendering.submit) == our_job["completions"]
    assert int(theirs["spec"]["failurePolicy"]["maxRestarts"]) == job.max_restarts
    their_pod, our_pod = their_job["template"]["spec"], our_job["template"]["spec"]
    assert int(their_pod["terminationGracePeriodSeconds"]) == our_pod["terminationGracePeriodSeconds"]
    assert their_pod["restartPolicy"] == our_pod["restartPolicy"]
    (theirs_runs,), (ours_runs,) = their_pod["containers"], our_pod["containers"]
    assert theirs_runs["image"] == ours_runs["image"]
    assert theirs_runs["resources"] == ours_runs["resources"]
    if job.accelerator.tpu:
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        assert theirs["metadata"]["annotations"][key] == ours["metadata"]["annotations"][key]
        assert their_pod["nodeSelector"].items() <= our_pod["nodeSelector"].items()
        if job.accelerator.copies > 1:
            assert their_pod["hostNetwork"] == our_pod["hostNetwork"]
    (rule,) = their_job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["operator"] == "NotIn" and not {1, 2} & set(rule["onExitCodes"]["values"])
    assert {42, 137, 143} <= set(rule["onExitCodes"]["values"])
    variables = {variable["name"]: variable.get("value") for variable in theirs_runs["env"]}
    assert variables["PYTHONUNBUFFERED"] == "1"


def test_xpk_hands_our_command_over_unchanged_and_the_signal_to_the_worker(folder):
    """What it wraps around the command is run, with a worker that says which signal it got."""
    done = manifest(folder, xpk.render(JOBS["image"]).submit[0])
    script = done["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][2]
    programs = folder / "programs"
    programs.mkdir()
    (programs / "python").write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked to stop', flush=True), os._exit(42)))\n"
        "print(os.environ['LM_LAUNCH_HOST'], *sys.argv[1:], flush=True)\n"
        "signal.pause()\n"
    )
    (programs / "python").chmod(0o755)
    pod = subprocess.Popen(
        ["bash", "-c", script],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "3"},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in pod.stdout:
        said.append(line.strip())
        if "launch worker" in line:
            pod.terminate()
    assert pod.wait(30) == 42
    assert f"0-3 -m lm launch worker {JOBS['image'].folder}" in said and "asked to stop" in said


def test_xpk_accepts_how_a_job_is_watched_and_stopped_and_refuses_what_it_does_not_know(folder):
    rendering = xpk.render(JOBS["v5e-4x4-train"])
    for command in (*rendering.watch, *rendering.stop):
        if command.argv[0] == "xpk":
            done = run(folder, [*command.argv, "--dry-run", "--skip-validation"])
            assert done.returncode == 0, f"{shlex.join(command.argv)}\n{done.stdout}{done.stderr}"
    assert run(folder, [*rendering.stop[0].argv, "--dry-run", "--nonsense"]).returncode == 2
    argv = [part.replace("v5litepod-4x4", "v5litepod-5x5") for part in rendering.submit[0].argv]
    assert run(folder, [*argv, "--dry-run"]).returncode == 2


def test_our_table_of_accelerators_is_xpks(folder, record_property):
    code = """if True:
        import json
        from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as table
        print(json.dumps({name: [a.vms_per_slice, a.chips_per_vm, a.gke_accelerator, a.topology, a.gce_machine_type]
                          for name, a in table.items()}))"""
    done = run(folder, [str(folder / "env" / "bin" / "python"), "-c", code])
    theirs = json.loads(done.stdout.splitlines()[-1])
    checked = 0
    for family, tpu in TPUS.items():
        for shape in tpu.shapes:
            name = f"{tpu.type_stem}-{shape}"
            if shape in xpk._OTHER_HOSTS.get(family, ()) or name not in theirs:
                continue
            a = parse(f"{family}:{shape}")
            assert theirs[name] == [a.hosts, a.devices_per_host, tpu.gke, shape, a.machine], name
            checked += 1
        assert f"{tpu.type_stem}-{tpu.shapes[-1]}" in theirs or family == "v5p"
    for gpu in GPUS.values():
        if gpu.xpk:
            assert theirs[gpu.xpk][1:] == [8, gpu.gke, "N/A", gpu.machines[8]]
            checked += 1
    record_property("validated", f"{checked} accelerators by xpk {VERSION}'s table")
    assert checked >= 82
