"""The target `gke`: a JobSet for TPU slices or GPU nodes of a Kubernetes cluster at Google, submitted with kubectl.

Hosts that train together are a gang: when one ends, JobSet starts all of them again. Where that would not help (the
worker's exit codes 1 and 2) the JobSet has failed at once. A sweep's workers are the indices of one Job, and each is
started again alone. Field by field: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ and `kubectl explain`.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from lm.errors import UsageError
from lm.launch import container
from lm.launch.job import Job
from lm.launch.render import Command, Rendering, environment_of

OPTIONS: Mapping[str, str] = {
    "context": "kubectl's context (default: the current one)",
    "namespace": "of the cluster (default: default)",
    "queue": "Kueue's LocalQueue; the rendering then has a kueue.yaml that makes one",
    "service-account": "of the pods, in Kubernetes; it needs to write to the bucket",
    "secret": "a Kubernetes secret whose keys become variables of every host: WANDB_API_KEY, AWS_SECRET_ACCESS_KEY …",
}
JOBSET, KUEUE = "jobset.yaml", "kueue.yaml"
_CONTAINER = "lm"
_ALIVE = "/tmp/lm-alive"
_COORDINATOR_PORT = 8476
_WRONG = [1, 2, 126, 127]  # an error of Python, wrong usage; no such program in the image
_INSTALL_MINUTES, _SILENT_MINUTES = 30, 5
_KEPT_SECONDS = 3 * 24 * 3600  # of what has ended, for `kubectl describe` and `kubectl logs`


def render(job: Job) -> Rendering:
    """Return a job as a JobSet.

    Raises:
      UsageError: a topology or a workdir that GKE cannot serve, or a secret in the environment.
    """
    container.check(job, "put it into a Kubernetes secret and name that with --option secret=NAME")
    if _is_gang(job) and job.accelerator.tpu and job.accelerator.copies > 1 and job.accelerator.hosts == 1:
        raise UsageError(f"--topology {job.topology}: GKE joins only slices that have several hosts each.")
    files = {JOBSET: _yaml(jobset(job))}
    if "queue" in job.options:
        files[KUEUE] = _yaml(*kueue(job))
    context = ("--context", job.options["context"]) if "context" in job.options else ()
    inside = ("--namespace", _namespace(job), *context)
    pods = f"jobset.sigs.k8s.io/jobset-name={job.name}"
    first = f"{pods},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    return Rendering(
        files=files,
        submit=(Command("create the JobSet", ("kubectl", "apply", "-f", "-", *inside), stdin=JOBSET),),
        watch=(
            Command("its state and restarts", ("kubectl", "get", "jobset", job.name, *inside)),
            Command("its pods", ("kubectl", "get", "pods", "-o", "wide", "-l", pods, *inside)),
            Command("the first host's log", ("kubectl", "logs", "-f", "--tail=100", "-l", first, *inside)),
            Command("why the first host waits", ("kubectl", "describe", "pods", "-l", first, *inside)),
            Command("why all were restarted, or failed", ("kubectl", "describe", "jobset", job.name, *inside)),
        ),
        stop=(
            Command(
                "delete the JobSet and wait for its pods to end",
                ("kubectl", "delete", "jobset", job.name, "--ignore-not-found", "--cascade=foreground", *inside),
            ),
        ),
        notes=tuple(_notes(job)),
    )


def jobset(job: Job) -> dict[str, Any]:
    """Return the JobSet as Kubernetes' JSON."""
    accelerator = job.accelerator
    slices, hosts = _shape(job)
    annotations = {"lm/command": " ".join(("lm", *job.arguments)), "lm/commit": job.commit}
    if _is_gang(job) and accelerator.tpu and hosts > 1:
        # A Job has a slice of several hosts, which is a node pool, for itself.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    labels = {"kueue.x-k8s.io/queue-name": job.options["queue"]} if "queue" in job.options else {}
    of_job, of_all = _ends(job)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _without_empty(name=job.name, namespace=_namespace(job), labels=labels, annotations=annotations),
        "spec": {
            **_without_empty(failurePolicy=of_all),
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "replicatedJobs": [
                {
                    "name": _group(job),
                    "replicas": slices,
                    "template": {
                        "spec": {
                            "parallelism": hosts,
                            "completions": hosts,
                            "completionMode": "Indexed",
                            **of_job,
                            "template": _pod(job),
                        }
                    },
                }
            ],
        },
    }


def _ends(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a pod's end does to its Job, and what that does to the JobSet."""
    wrong = {"containerName": _CONTAINER, "operator": "In", "values": _WRONG}
    if _is_gang(job):
        of_job = {"backoffLimit": 0, "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": wrong}]}}
        rule = {"name": "wrong", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        return of_job, {"maxRestarts": job.max_restarts, "rules": [rule]}
    lost = [{"type": "DisruptionTarget", "status": "True"}]
    rules = [
        {"action": "FailIndex", "onExitCodes": wrong},
        {"action": "Ignore", "onPodConditions": lost},  # a node that was taken away does not count
    ]
    return {"backoffLimitPerIndex": job.max_restarts, "podFailurePolicy": {"rules": rules}}, {}


def kueue(job: Job) -> tuple[dict[str, Any], ...]:
    """Return a queue that admits one job of this size at a time, as Kubernetes' JSON: an example to start from."""
    queue, flavor = job.options["queue"], f"lm-{job.accelerator.family}-{job.accelerator.shape}"
    flavor += "-spot" if job.spot else ""
    quota = {"name": _resource(job), "nominalQuota": job.accelerator.devices}
    api = {"apiVersion": "kueue.x-k8s.io/v1beta2"}
    return (
        {**api, "kind": "ResourceFlavor", "metadata": {"name": flavor}, "spec": {"nodeLabels": _nodes(job)}},
        {
            **api,
            "kind": "ClusterQueue",
            "metadata": {"name": queue},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [
                    {"coveredResources": [_resource(job)], "flavors": [{"name": flavor, "resources": [quota]}]}
                ],
            },
        },
        {
            **api,
            "kind": "LocalQueue",
            "metadata": {"name": queue, "namespace": _namespace(job)},
            "spec": {"clusterQueue": queue},
        },
    )


def _is_gang(job: Job) -> bool:
    return not job.is_sweep


def _shape(job: Job) -> tuple[int, int]:
    """Return how many Jobs the JobSet has, with how many hosts each.

    A slice that trains is a Job. All else is one Job: with two, the end of one would end the other (JobSet's action
    RestartJob, which would not, is alpha and off).
    """
    accelerator = job.accelerator
    if _is_gang(job) and accelerator.tpu:
        return accelerator.copies, accelerator.hosts
    return 1, accelerator.copies * accelerator.hosts


def _group(job: Job) -> str:
    return "worker" if job.is_sweep else "slice" if job.accelerator.tpu else "node"


def _namespace(job: Job) -> str:
    return job.options.get("namespace", "default")


def _resource(job: Job) -> str:
    return "google.com/tpu" if job.accelerator.tpu else "nvidia.com/gpu"


def _nodes(job: Job) -> dict[str, str]:
    """Return the labels of the nodes that serve a job."""
    accelerator = job.accelerator
    google = "cloud.google.com"
    if accelerator.tpu:
        labels = {
            f"{google}/gke-tpu-accelerator": accelerator.tpu.gke,
            f"{google}/gke-tpu-topology": accelerator.shape,
        }
    else:
        labels = {f"{google}/gke-accelerator": accelerator.gpu.gke}
    if job.spot:
        labels[f"{google}/gke-spot"] = "true"
    if job.reservation:
        labels[f"{google}/reservation-name"] = job.reservation
    return labels


def _pod(job: Job) -> dict[str, Any]:
    joins_slices = _is_gang(job) and job.accelerator.tpu and job.accelerator.copies > 1
    tolerations = [{"key": _resource(job), "operator": "Exists", "effect": "NoSchedule"}]
    if job.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    return {
        # To the autoscaler a node whose devices are all in use may look idle.
        "metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
        "spec": {
            **_without_empty(serviceAccountName=job.options.get("service-account")),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": job.grace_seconds,
            # The way between slices is the hosts' own network; through the pods' it is slower.
            **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if joins_slices else {}),
            "nodeSelector": _nodes(job),
            "tolerations": tolerations,
            "containers": [_container(job)],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }


def _container(job: Job) -> dict[str, Any]:
    accelerator = job.accelerator
    secret = [{"secretRef": {"name": job.options["secret"]}}] if "secret" in job.options else []
    # libtpu locks memory for its transfers: https://cloud.google.com/kubernetes-engine/docs/how-to/tpus
    may_lock = {"capabilities": {"add": ["SYS_RESOURCE"]}} if accelerator.tpu else {}
    return {
        "name": _CONTAINER,
        "image": container.image(job),
        "command": ["sh", "-c", container.script(job, tuple(_first_lines(job)))],
        "env": _environment(job),
        **_without_empty(envFrom=secret, securityContext=may_lock),
        "resources": {"limits": {_resource(job): accelerator.devices_per_host}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        # The worker makes the file once the code is installed, and renews it for as long as the verb speaks.
        "startupProbe": {
            "exec": {"command": ["test", "-e", _ALIVE]},
            "periodSeconds": 10,
            "failureThreshold": _INSTALL_MINUTES * 6,
        },
        "livenessProbe": {
            "exec": {"command": ["sh", "-c", f"find {_ALIVE} -mmin -{_SILENT_MINUTES} | grep -q ."]},
            "periodSeconds": 60,
            "timeoutSeconds": 30,
            "failureThreshold": 3,
        },
    }


def _environment(job: Job) -> list[dict[str, Any]]:
    accelerator = job.accelerator
    slices, hosts = _shape(job)
    variables = {"PYTHONUNBUFFERED": "1", "LM_LIVENESS_FILE": _ALIVE}
    if accelerator.gpu and not job.image:
        variables["LD_LIBRARY_PATH"] = "/usr/local/nvidia/lib64"  # where GKE puts the driver; CUDA images know it
    if _is_gang(job):
        if accelerator.gpu and hosts > 1:
            variables["LM_COORDINATOR"] = f"{job.name}-{_group(job)}-0-0.{job.name}:{_COORDINATOR_PORT}"
        if accelerator.gpu or slices * hosts == 1:  # slices find each other by what GKE tells libtpu
            variables["LM_NUM_PROCESSES"] = str(hosts)
    written = [{"name": name, "value": value} for name, value in {**variables, **environment_of(job)}.items()]
    if slices == 1:
        return written
    index = {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-index']"}}
    return [*written, {"name": "LM_SLICE", "valueFrom": index}]


def _first_lines(job: Job) -> list[str]:
    accelerator = job.accelerator
    slices, hosts = _shape(job)
    host = "$LM_SLICE-$JOB_COMPLETION_INDEX" if slices > 1 else container.host_of_index(job)
    lines = [f"export LM_LAUNCH_HOST={host}"]
    if accelerator.tpu:
        lines.append("ulimit -l 68719476736 || true")
    if accelerator.tpu and job.is_sweep and hosts > 1:
        # GKE names a Job's pods to libtpu as the hosts of one slice. Each of these is alone.
        lines.append("export TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost")
    return lines


def _notes(job: Job) -> list[str]:
    accelerator = job.accelerator
    slices, hosts = _shape(job)
    capacity = ", spot" if job.spot else ""
    capacity += f", from the reservation {job.reservation}" if job.reservation else ""
    if accelerator.tpu:
        pools = accelerator.copies if accelerator.hosts > 1 else 1
        nodes = accelerator.hosts if accelerator.hosts > 1 else accelerator.copies
        needs = f"{pools} node pool{'s' * (pools > 1)} of {nodes} x {accelerator.machine}, topology {accelerator.shape}"
    else:
        needs = f"{hosts} x {accelerator.machine} (gpu-driver-version=latest, for CUDA 13)"
    notes = [f"the cluster needs JobSet and {needs}{capacity}"]
    if job.is_sweep:
        notes.append("each worker is started again alone; that needs Kubernetes 1.29 or newer (backoffLimitPerIndex)")
    if job.spot:
        notes.append(
            f"a spot node gives its pods 15 s, whatever --grace-seconds ({job.grace_seconds}) is, unless its node pool's "
            "system configuration has a longer graceful shutdown (up to 120 s from GKE 1.35)"
        )
    if slices > 1:
        notes.append(
            "the pods use their hosts' network, so the nodes' service account must be able to write to the bucket"
        )
    if accelerator.gpu and hosts > 1 and _is_gang(job):
        notes.append("between the nodes NCCL uses plain TCP; for GPUDirect use a cluster made by xpk and --target xpk")
    if "queue" in job.options:
        notes.append(f"once per cluster, with Kueue 0.15 or newer: kubectl apply -f {KUEUE}; check its quota")
    notes.append("a JobSet that has ended stays, and applying it again starts nothing: stop it first")
    return notes


def _without_empty(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


class _Dumper(yaml.SafeDumper):
    """YAML as a person writes it: scripts as text blocks, nothing by reference."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _yaml(*documents: dict[str, Any]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
