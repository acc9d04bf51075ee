"""Kubernetes: what a pod's script does when it runs, who its hosts are, what starts again and what is refused."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest
import yaml

from lm.errors import UsageError
from lm.launch import container, gke, xpk
from lm.launch.job import Job, named
from tests.launch.golden import TARGETS, job_of


def job(target: str = "gke", topology: str = "v5e:4x4", verb: str = "train", **changes) -> Job:
    return named(dataclasses.replace(job_of(target, topology, verb), **changes))


def pod_of(rendered: dict) -> dict:
    return rendered["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def run(script: str, folder, **environment: str) -> subprocess.CompletedProcess:
    """Run a pod's script with a home of its own and with what it calls replaced by programs that say so."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("pip", "python", "tar", "sleep"):
        program = programs / name
        fails = 'case "$*" in *"${FAIL:-nothing}"*) exit 1;; esac\n'
        program.write_text(f'#!/bin/sh\necho {name} "$*" in $PWD as $LM_LAUNCH_HOST\n{fails}')
        program.chmod(0o755)
    return subprocess.run(
        ["sh", "-c", script],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "JOB_COMPLETION_INDEX": "3",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )


def calls(done: subprocess.CompletedProcess) -> list[str]:
    return [" ".join(line.split()[:2]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("form", [str, container.on_one_line], ids=["as a script", "on one line, for xpk"])
def test_a_pod_installs_the_code_of_the_jobs_folder_and_becomes_the_worker(tmp_path, form):
    one = job()
    done = run(form(container.script(one, ("export LM_LAUNCH_HOST=0-3",))), tmp_path)
    assert done.returncode == 0, done.stderr
    assert calls(done) == ["pip install", "python -c", "tar -xzf", "pip install", "python -m"]
    lines = done.stdout.splitlines()
    assert f"gs {one.folder}/code.tar.gz code.tar.gz" in lines[1]
    assert lines[-1] == f"python -m lm launch worker {one.folder} in {tmp_path}/lm as 0-3"
    assert ".[tpu,gcs]" in lines[3]


@pytest.mark.parametrize("form", [str, container.on_one_line], ids=["as a script", "on one line, for xpk"])
def test_an_installation_is_tried_three_times_and_then_not_again(tmp_path, form):
    done = run(form(container.script(job())), tmp_path, FAIL="fsspec gcsfs")
    assert done.returncode == 1, "42 would start it again on a new host, and again"
    assert calls(done) == ["pip install", "sleep 10", "pip install", "sleep 60", "pip install"]


def test_the_archive_is_fetched_through_fsspec(tmp_path):
    (tmp_path / "code.tar.gz").write_bytes(b"the archive")
    fetch = f"{container._FETCH} file {tmp_path}/code.tar.gz here.tar.gz"
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", fetch], cwd=tmp_path, check=True, timeout=60, env={"PATH": path})
    assert (tmp_path / "here.tar.gz").read_bytes() == b"the archive"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image": "an/image"}, ["python -m"]),
        ({"install": ""}, ["python -m"]),
        (
            {"image": "an/image", "install": "pip uninstall x; pip check"},
            ["python -c", "tar -xzf", "pip uninstall", "pip check", "python -m"],
        ),
    ],
    ids=["image", "nothing", "image and command"],
)
def test_an_image_needs_no_installation_and_a_command_of_the_users_replaces_it(tmp_path, changes, expected):
    assert calls(run(container.script(job(**changes)), tmp_path)) == expected


@pytest.mark.parametrize(
    ("topology", "verb", "index", "slice_index", "host"),
    [
        ("v5e:4x4", "train", 3, None, "0-3"),
        ("2*v6e:16x16", "train", 63, 1, "1-63"),
        ("2*v6e:16x16", "sweep", 127, None, "1-63"),
        ("2*v6e:16x16", "sweep", 63, None, "0-63"),
        ("h100:64", "train", 7, None, "0-7"),
        ("4*l4:1", "eval", 3, None, "3-0"),
        ("3*h100:16", "sweep", 3, None, "1-1"),
    ],
)
def test_every_pod_knows_which_host_of_which_copy_it_is(tmp_path, topology, verb, index, slice_index, host):
    rendered = gke.jobset(job(topology=topology, verb=verb, image="an/image"))
    script = pod_of(rendered)["containers"][0]["command"][2]
    slices = {} if slice_index is None else {"LM_SLICE": str(slice_index)}
    done = run(script, tmp_path, JOB_COMPLETION_INDEX=str(index), **slices)
    assert done.stdout.splitlines()[-1].endswith(f"as {host}")
    names = {variable["name"] for variable in pod_of(rendered)["containers"][0]["env"]}
    assert ("LM_SLICE" in names) == (slice_index is not None)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5e:4x4", "2*v6e:16x16", "h100:64", "4*l4:1", "2*h100:16"])
def test_the_workers_of_a_sweep_start_again_alone_and_are_told_that_they_are_alone(topology):
    one = job(topology=topology, verb="sweep", max_restarts=9)
    rendered = gke.jobset(one)
    (group,) = rendered["spec"]["replicatedJobs"]
    spec = group["template"]["spec"]
    assert group["replicas"] == 1, "one of several Jobs that fails ends the others"
    assert spec["completions"] == spec["parallelism"] == one.accelerator.copies * one.accelerator.hosts
    assert spec["backoffLimitPerIndex"] == 9 and "backoffLimit" not in spec
    assert "failurePolicy" not in rendered["spec"]
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailIndex", "Ignore"]
    variables = {variable["name"]: variable.get("value") for variable in pod_of(rendered)["containers"][0]["env"]}
    assert variables["LM_NUM_PROCESSES"] == "1" and "LM_COORDINATOR" not in variables


@pytest.mark.parametrize("verb", ["train", "eval"])
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5e:4x4", "2*v6e:16x16", "h100:64", "4*l4:1"])
def test_hosts_that_train_together_start_again_together_unless_that_would_not_help(topology, verb):
    rendered = gke.jobset(job(topology=topology, verb=verb, max_restarts=9))
    policy, spec = rendered["spec"]["failurePolicy"], rendered["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["backoffLimit"] == 0 and policy["maxRestarts"] == 9
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (
        rule["action"] == "FailJob"
        and rule["onExitCodes"]["containerName"] == pod_of(rendered)["containers"][0]["name"]
    )
    assert {1, 2} <= set(rule["onExitCodes"]["values"]) and 42 not in rule["onExitCodes"]["values"]
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_a_pod_counts_as_hung_once_its_liveness_file_is_old_and_not_before_there_is_one(tmp_path):
    one = pod_of(gke.jobset(job()))["containers"][0]
    variables = {variable["name"]: variable.get("value") for variable in one["env"]}

    def succeeds(probe: str) -> bool:
        argv = [
            part.replace(variables["LM_LIVENESS_FILE"], str(tmp_path / "alive"))
            for part in one[probe]["exec"]["command"]
        ]
        return subprocess.run(argv, capture_output=True, timeout=30).returncode == 0

    assert not succeeds("startupProbe")
    (tmp_path / "alive").touch()
    assert succeeds("startupProbe") and succeeds("livenessProbe")
    os.utime(tmp_path / "alive", (time.time() - 400, time.time() - 400))
    assert succeeds("startupProbe") and not succeeds("livenessProbe")


def test_gpu_nodes_find_each_other_at_the_first_pods_name():
    one = job(topology="3*h100:16")
    rendered = gke.jobset(one)
    variables = {variable["name"]: variable.get("value") for variable in pod_of(rendered)["containers"][0]["env"]}
    group = rendered["spec"]["replicatedJobs"][0]["name"]
    assert variables["LM_COORDINATOR"].startswith(f"{one.name}-{group}-0-0.{one.name}:")
    assert variables["LM_NUM_PROCESSES"] == "6"


def test_a_node_pool_is_taken_for_one_job_only_where_it_is_one_slice():
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    has = {
        topology: key in gke.jobset(job(topology=topology))["metadata"]["annotations"]
        for topology in ("v5e:2x2", "v5e:4x4", "2*v6e:16x16", "h100:64")
    }
    assert has == {"v5e:2x2": False, "v5e:4x4": True, "2*v6e:16x16": True, "h100:64": False}


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_names_of_pods_stay_within_what_kubernetes_allows(verb):
    long = ("train", "--config", "experiments/a_config_with_a_very_long_name_indeed.py", "--workdir", "gs://b/c")
    one = named(Job(arguments=(verb, *long[1:]), target="gke", topology="8*v5p:16x16x16", workdir="gs://b/c"))
    group = gke.jobset(one)["spec"]["replicatedJobs"][0]
    last = group["template"]["spec"]["completions"] - 1
    assert len(f"{one.name}-{group['name']}-{group['replicas'] - 1}-{last}-abcde") <= 63


def test_yaml_keeps_a_script_readable_and_gives_back_what_went_in():
    one = job()
    text = gke.render(one).files[gke.JOBSET]
    assert yaml.safe_load(text) == gke.jobset(one)
    assert "- |\n" in text and "&id" not in text


def test_kueue_is_rendered_only_where_a_queue_is_named():
    assert set(gke.render(job()).files) == {gke.JOBSET}
    one = job(topology="2*v6e:16x16", options={"queue": "tpus"})
    files = gke.render(one).files
    flavor, cluster, local = yaml.safe_load_all(files[gke.KUEUE])
    assert yaml.safe_load(files[gke.JOBSET])["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    assert local["metadata"]["name"] == "tpus" and local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    (granted,) = cluster["spec"]["resourceGroups"][0]["flavors"]
    assert granted["name"] == flavor["metadata"]["name"]
    assert granted["resources"] == [{"name": "google.com/tpu", "nominalQuota": 512}]
    assert flavor["spec"]["nodeLabels"] == pod_of(gke.jobset(one))["nodeSelector"]


@pytest.mark.parametrize("renderer", [gke, xpk], ids=["gke", "xpk"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workdir": "runs/llama"}, "use a bucket"),
        ({"topology": "cpu:4"}, "TPUs and GPUs"),
        ({"topology": "2*v5p:2x2x1"}, "several hosts each"),
        ({"environment": {"WANDB_API_KEY": "0123"}}, "WANDB_API_KEY: a secret"),
        ({"environment": {"hf_token": "0123"}}, "hf_token: a secret"),
    ],
)
def test_what_no_pod_can_serve_is_refused_in_one_line(renderer, changes, says):
    target = renderer.__name__.rpartition(".")[2]
    with pytest.raises(UsageError, match=says) as refusal:
        renderer.render(job(target, **changes))
    assert "\n" not in str(refusal.value) and "0123" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {}}, "--option cluster=NAME"),
        ({"topology": "v5e:2x4"}, "no slice"),
        ({"topology": "h100:4"}, "machines of 8"),
        ({"environment": {"XLA_FLAGS": '--a="b"'}}, "double quotation mark"),
        ({"install": "pip install \\\n ."}, "line break"),
    ],
)
def test_what_xpk_cannot_serve_is_refused_in_one_line(changes, says):
    with pytest.raises(UsageError, match=says):
        xpk.render(job("xpk", **changes))


@pytest.mark.parametrize(
    ("topology", "workloads"), [("h100:64", 8), ("4*v6e:2x2", 4), ("2*h200:16", 4), ("v6e:2x2", 1)]
)
def test_xpk_gives_every_worker_of_a_sweep_a_workload_of_its_own(topology, workloads):
    rendering = xpk.render(job("xpk", topology=topology, verb="sweep"))
    assert len(rendering.submit) == len(rendering.stop) == workloads
    hosts = [next(part for part in command.argv if "LM_LAUNCH_HOST" in part) for command in rendering.submit]
    assert len(set(hosts)) == workloads


def test_every_option_that_a_renderer_reads_is_described():
    for renderer, target in ((gke, "gke"), (xpk, "xpk")):
        assert set(TARGETS[target]) <= set(renderer.OPTIONS)
    options = {name: f"a-{name}" for name in gke.OPTIONS}
    rendering = gke.render(job(options=options))
    text = "\n".join([*rendering.files.values(), *(str(command) for command in rendering.submit)])
    assert all(value in text for value in options.values())
    options = {name: f"a-{name}" for name in xpk.OPTIONS}
    assert all(value in str(xpk.render(job("xpk", options=options)).submit[0]) for value in options.values())
