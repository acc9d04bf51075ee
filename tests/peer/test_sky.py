"""Our task files and command lines read by SkyPilot itself, without a cloud.

Its pins exclude other extras of ours, so it has an environment of its own, made here (about a minute).
"""

import json
import os
import subprocess
import sys

import pytest

from lm.launch import sky
from lm.launch.accelerators import TPUS, parse
from tests.launch import golden, pages

pytestmark = [pytest.mark.peer, pytest.mark.slow]

VERSION = "0.14.1"
JOBS = {
    name: job for target, name, job in golden.cases() if target == "sky" and "refused.txt" not in golden.rendered(job)
}
# Reads task files and command lines, and prints what it made of each, or what it said.
READER = """
import json, os, sys
import sky
from sky.client.cli import command

asked = json.load(sys.stdin)
tasks, lines = {}, {}
for path in asked["tasks"]:
    try:
        task = sky.Task.from_yaml(path)
        (resources,) = task.resources
        tasks[path] = {
            "accelerators": resources.accelerators,
            "nodes": task.num_nodes,
            "spot": resources.use_spot,
            "recovery": resources.job_recovery,
            "mounts": task.file_mounts,
        }
    except Exception as error:
        tasks[path] = f"{type(error).__name__}: {error}"
for line in asked["lines"]:
    verb, words = command.cli, line[1:]
    try:
        while hasattr(verb, "commands"):
            verb, words = verb.commands[words[0]], words[1:]
        verb.make_context(line[1], words)
        lines[" ".join(line)] = "accepted"
    except Exception as error:
        lines[" ".join(line)] = f"{type(error).__name__}: {error}"
known = open(os.path.join(os.path.dirname(sky.__file__), "catalog", "data_fetchers", "fetch_gcp.py")).read().split()
json.dump({"tasks": tasks, "lines": lines, "known": [word.split(",")[0] for word in known if word[:5] == "tpu-v"]}, sys.stdout)
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return what SkyPilot makes of all our tasks and commands, and of some wrong ones."""
    folder = tmp_path_factory.mktemp("sky")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=300)
    pip = [str(folder / "env" / "bin" / "pip"), "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    done = subprocess.run([*pip, f"skypilot=={VERSION}"], capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.skip(f"SkyPilot {VERSION} cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    (folder / "code.tar.gz").touch()
    lines = []
    for name, job in JOBS.items():
        rendering = sky.render(job)
        (folder / f"{name}.yaml").write_text(rendering.files["job.yaml"])
        lines += [command.argv for command in (*rendering.submit, *rendering.watch, *rendering.stop)]
    one = (folder / "l4-1-train.yaml").read_text()
    for name, right, wrong in (
        ("wrong-key", "num_nodes:", "num_node:"),
        ("wrong-nested-key", "use_spot:", "usespot:"),
        ("wrong-type", "num_nodes: 1", "num_nodes: four"),
        ("wrong-code", "[42]", "[4200]"),
        ("bogus", "L4:1", "tpu-v99-16"),
    ):
        changed = one.replace("\n    - 42", " [42]").replace(right, wrong)
        assert wrong in changed
        (folder / f"{name}.yaml").write_text(changed)
    lines += pages.of("sky")
    lines.append(("sky", "jobs", "launch", "--detachrun", "job.yaml"))
    asked = {"tasks": sorted(path.name for path in folder.glob("*.yaml")), "lines": lines}
    done = subprocess.run(
        [str(folder / "env" / "bin" / "python"), "-c", READER],
        input=json.dumps(asked),
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index('{"tasks"') :])


@pytest.mark.parametrize("name", JOBS)
def test_skypilot_reads_of_a_task_what_we_mean(read, name, record_property):
    record_property("validated", f"{len(JOBS)} tasks by SkyPilot {VERSION}'s parser")
    job, task = JOBS[name], read["tasks"][f"{name}.yaml"]
    accelerator = job.accelerator
    ours = (
        {f"tpu-{accelerator.gcloud_type}": 1}
        if accelerator.tpu
        else {accelerator.gpu.sky: accelerator.devices_per_host}
    )
    assert isinstance(task, dict), task
    assert task["accelerators"] == ours and task["spot"] == job.spot
    assert task["recovery"]["max_restarts_on_errors"] == 0 and task["recovery"]["recover_on_exit_codes"] == [42]
    assert task["mounts"] == (None if job.image else {"~/code.tar.gz": "code.tar.gz"})


def test_skypilot_takes_all_our_command_lines_and_those_of_its_page(read, record_property):
    lines = {line: said for line, said in read["lines"].items() if "--detachrun" not in line}
    record_property("validated", f"{len(lines)} command lines, the launch page's too, by SkyPilot {VERSION}'s parser")
    assert {" ".join(argv) for argv in pages.of("sky")} <= set(lines)
    assert set(lines.values()) == {"accepted"}, lines
    (wrong,) = [said for line, said in read["lines"].items() if line not in lines]
    assert "No such option" in wrong


@pytest.mark.parametrize("name", ["wrong-key", "wrong-nested-key", "wrong-type", "wrong-code"])
def test_skypilots_parser_finds_mistakes(read, name):
    assert isinstance(read["tasks"][f"{name}.yaml"], str)


def test_an_accelerator_that_is_none_passes_skypilots_parser_but_not_our_table(read):
    assert read["tasks"]["bogus.yaml"]["accelerators"] == {"tpu-v99-16": 1}
    with pytest.raises(Exception, match="expected a family"):
        parse("v99:4x4")


def test_the_v5p_slices_of_our_table_that_fit_a_pod_are_in_skypilots(read, record_property):
    fit = [shape for shape in TPUS["v5p"].shapes if max(map(int, shape.split("x"))) <= 28]  # a pod is 16x20x28
    ours = {f"tpu-{parse(f'v5p:{shape}').gcloud_type}" for shape in fit}
    record_property("validated", f"{len(ours)} types of v5p by SkyPilot {VERSION}'s list")
    assert ours <= set(read["known"]), ours - set(read["known"])
    assert len(ours) > 30
