"""The rendered JobSets and queues against Kubernetes' own schemas, and kubectl's arguments against kubectl.

JobSet and Kueue are extensions, whose schemas no package brings: their own fields are listed here as their CRDs
(v1alpha2 and v1beta2) have them. What is inside a JobSet is a Job, and is validated as one.
"""

import copy
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from tests.launch import golden

pytestmark = pytest.mark.peer

VERSIONS = ("1.32", "1.37")  # of Kubernetes: the oldest whose schemas the package has, the newest that was tried
FOLDERS = sorted(path.name for path in (golden.FOLDER / "gke").iterdir())

# A field's name -> what is inside: a table, a one-element list for a list of tables, a type, or None for anything.
METADATA = {"name": str, "namespace": str, "labels": None, "annotations": None}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": METADATA,
    "spec": {
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": None}}],
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": None, "targetReplicatedJobs": None}],
        },
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "successPolicy": None,
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}
RESOURCES = [{"name": str, "nominalQuota": int}]
KUEUE = {
    "ResourceFlavor": {"nodeLabels": None},
    "ClusterQueue": {
        "namespaceSelector": None,
        "resourceGroups": [{"coveredResources": None, "flavors": [{"name": str, "resources": RESOURCES}]}],
    },
    "LocalQueue": {"clusterQueue": str},
}
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")


def unknown(value, table, path="") -> list[str]:
    """Return what of a document the table does not know."""
    if table is None:
        return []
    if isinstance(table, type):
        return [] if type(value) is table else [f"{path} is no {table.__name__}"]
    if isinstance(table, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [line for number, item in enumerate(value) for line in unknown(item, table[0], f"{path}[{number}]")]
    if not isinstance(value, dict):
        return [f"{path} is no table"]
    lines = [f"{path}.{name} is unknown" for name in value.keys() - table.keys()]
    return lines + [
        line for name in value.keys() & table.keys() for line in unknown(value[name], table[name], f"{path}.{name}")
    ]


def errors(jobset: dict) -> list[str]:
    """Return what is wrong with a JobSet by its CRD, by its webhook's rules, and by Kubernetes' schemas of a Job."""
    import kubernetes_validate

    lines = unknown(jobset, JOBSET)
    groups = jobset["spec"]["replicatedJobs"]
    for rule in jobset["spec"].get("failurePolicy", {}).get("rules", []):
        if rule["action"] not in ACTIONS or not set(rule["onJobFailureReasons"]) <= set(REASONS):
            lines.append(f"no such action or reason: {rule}")
    for group in groups:
        job = group["template"]["spec"]
        pod = f"{jobset['metadata']['name']}-{group['name']}-{group['replicas'] - 1}-{job['completions'] - 1}-abcde"
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", pod):
            lines.append(f"no name for a pod: {pod}")
        for version in VERSIONS:
            for kind, api, spec in (("Job", "batch/v1", job), ("Pod", "v1", job["template"]["spec"])):
                document = {"apiVersion": api, "kind": kind, "metadata": {"name": pod}, "spec": spec}
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    lines.append(f"{kind} of {version}: {error.message[:200]}")
    return lines


def test_every_jobset_is_one_and_its_jobs_are_kubernetes_jobs(record_property):
    record_property(
        "validated", f"{len(FOLDERS)} JobSets, their Jobs and pods by Kubernetes' schemas {', '.join(VERSIONS)}"
    )
    for name in FOLDERS:
        assert errors(yaml.safe_load((golden.FOLDER / "gke" / name / "jobset.yaml").read_text())) == [], name


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("spec.replicatedJobs.0.template.spec.parallelism", "four"),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.livenessprobe", {}),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.values", ["1"]),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.env.0.value", 1),
        ("spec.replicatedJobs.0.replica", 2),
        ("spec.failurePolicy.rules.0.action", "FailJob"),
        ("metadata.name", "has_underscores"),
        ("metadata.name", "far-too-long-" * 5),
    ],
)
def test_a_mistake_in_a_jobset_is_found(where, value):
    jobset = copy.deepcopy(yaml.safe_load((golden.FOLDER / "gke" / "v5e-4x4-train" / "jobset.yaml").read_text()))
    *path, last = where.split(".")
    inner = jobset
    for part in path:
        inner = inner[int(part)] if part.isdigit() else inner[part]
    inner[last] = value
    assert errors(jobset)


def test_a_queue_has_kueues_fields_alone(record_property):
    record_property("validated", "a Kueue queue by a list of v1beta2's fields")
    for document in yaml.safe_load_all((golden.FOLDER / "gke" / "all-options" / "kueue.yaml").read_text()):
        table = {"apiVersion": str, "kind": str, "metadata": METADATA, "spec": KUEUE[document["kind"]]}
        assert unknown(document, table) == []
        assert document["apiVersion"] == "kueue.x-k8s.io/v1beta2"


def kubectl(argv: list[str], folder) -> str:
    """Return what kubectl says where there is no cluster."""
    config = folder / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncontexts: [{name: gke_a-project_us-east5_tpus, context: {cluster: none}}]\n"
        "clusters: [{name: none, cluster: {server: 'http://127.0.0.1:9'}}]\ncurrent-context: gke_a-project_us-east5_tpus\n"
    )
    done = subprocess.run(
        [argv[0], f"--kubeconfig={config}", *argv[1:]], input="", capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: its arguments stay unchecked")
def test_kubectl_accepts_the_arguments_of_every_command(tmp_path, record_property):
    lines = {
        line.partition(" < ")[0]
        for target in ("gke", "xpk")
        for name in ("all-options", "v5e-4x4-train")
        if (path := golden.FOLDER / target / name / "commands.txt").exists()
        for line in path.read_text().splitlines()
        if line.startswith("kubectl ")
    }
    record_property("validated", f"{len(lines)} command lines by kubectl")
    assert len(lines) > 8
    for line in lines:
        said = kubectl(shlex.split(line), tmp_path)
        # It has understood where it comes as far as the server, or as the input that it was to read.
        assert "refused" in said or "no objects passed to apply" in said, f"{line}: {said}"
    assert "unknown flag" in kubectl(["kubectl", "get", "jobset", "--name-space=x"], tmp_path)
