"""Every fault, planted alone into a bundle without one, is caught by name and at its place."""

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vergence.platform.jobs.check import rayjob
from vergence.platform.jobs.check.check import faults
from vergence.platform.jobs.check.documents import parse
from vergence.platform.jobs.check.finding import Document

SOUND = Path(__file__).with_name("sound.yaml")
DELETED = object()
HEAD = "spec.rayClusterSpec.headGroupSpec"
WORKER = "spec.rayClusterSpec.workerGroupSpecs[0]"
RAY = "template.spec.containers[0]"
FT = "spec.gcsFaultToleranceOptions"
HEAD_ENV = f"spec.headGroupSpec.{RAY}.env"
RULES = "spec.deletionStrategy.deletionRules"


class Row(NamedTuple):
    """Set the value at a path of an object (`a.b[0].c`; DELETED takes it away), and see the rule there."""

    what: str
    kind: str
    path: str
    value: Any
    rule: str
    at: str | None = None  # where it is found, if not at `path`
    more: tuple[tuple[str, Any], ...] = ()  # of the same object


def on(success: int, other: int) -> list[dict[str, Any]]:
    return [
        {"policy": policy, "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": ttl}}
        for policy, ttl in (("DeleteWorkers", success), ("DeleteCluster", other))
    ]


UNENDED = (("spec.shutdownAfterJobFinishes", DELETED), ("spec.ttlSecondsAfterFinished", DELETED))
UNQUEUED: tuple[tuple[str, Any], ...] = (("metadata.labels", {}),)
SELECTED = (("spec.rayClusterSpec", DELETED), ("spec.backoffLimit", 0), *UNQUEUED)
SUBMITTED = (("spec.submissionMode", "K8sJobMode"),)
BARE_SUBMITTER = {"spec": {"containers": [{"name": "submit", "image": "a:1"}]}}
GROUP = {"groupName": "a", "rayStartParams": {}, "template": BARE_SUBMITTER}

ROWS = [
    # shape
    Row("an older version of the API", "RayJob", "apiVersion", "ray.io/v1alpha1", "schema"),
    Row("a misspelt field", "RayJob", "spec.entryPoint", "a", "schema"),
    Row("a misspelt field of a worker's container", "RayJob", f"{WORKER}.{RAY}.imagePullpolicy", "Always", "schema"),
    Row("a misspelt volume", "RayJob", f"{HEAD}.template.spec.volumes[0].emptydir", {}, "schema"),
    Row("a number as start parameter", "RayJob", f"{HEAD}.rayStartParams.num-cpus", 0, "schema"),
    Row("a number as variable", "RayJob", f"{HEAD}.{RAY}.env[0].value", 1, "schema"),
    Row("a quantity with a blank", "RayJob", f"{HEAD}.{RAY}.resources.limits.memory", "8 GB", "schema"),
    Row("runtimeEnvYAML as a mapping", "RayJob", "spec.runtimeEnvYAML", {"pip": []}, "schema"),
    Row("a misspelt field of a core kind", "Deployment", "spec.replica", 2, "core-schema"),
    Row("a wrong type in a core kind", "Service", "spec.ports[0].port", "5000", "core-schema"),
    Row("a kind that does not exist", "Service", "kind", "Servcie", "unknown-kind", "kind"),
    Row("no kind", "Service", "kind", DELETED, "schema"),
    Row("a pod that is none", "RayJob", f"{HEAD}.template.spec.restartPolicy", "Sometimes", "X10"),
    Row("a container with a name of two words", "RayJob", f"{WORKER}.{RAY}.name", "ray worker", "X10"),
    Row("a volume of nothing", "RayJob", f"{HEAD}.template.spec.volumes[0]", {"name": "tmp"}, "X10"),
    # CEL
    Row("a foreign manager", "RayJob", "spec.managedBy", "me", "CEL"),
    Row("flavors without all resources", "ClusterQueue", "spec.resourceGroups[0].coveredResources", ["cpu"], "CEL",
        "spec.resourceGroups[0]"),
    Row("a toleration without a key", "ResourceFlavor", "spec.tolerations", [{"operator": "Equal", "value": "a"}], "CEL"),
    # the job
    Row("a list as runtimeEnvYAML", "RayJob", "spec.runtimeEnvYAML", "[a]", "J30"),
    Row("broken YAML in runtimeEnvYAML", "RayJob", "spec.runtimeEnvYAML", "a: [", "J30"),
    Row("no entrypoint", "RayJob", "spec.entrypoint", DELETED, "X1"),
    Row("an unknown mode", "RayJob", "spec.submissionMode", "HttpMode", "X2"),
    Row("a shell's and", "RayJob", "spec.entrypoint", "cd /a && vergence pretrain b", "X9", more=SUBMITTED),
    Row("a pattern for the shell", "RayJob", "spec.entrypoint", "vergence pretrain a data.train=/b/*.tar", "X9",
        more=SUBMITTED),
    Row("suspended for ever", "RayJob", "spec.suspend", True, "J3", more=(*UNENDED, *UNQUEUED)),
    Row("a negative TTL", "RayJob", "spec.ttlSecondsAfterFinished", -1, "J4"),
    Row("a TTL without shutdown", "RayJob", "spec.shutdownAfterJobFinishes", DELETED, "J5",
        "spec.ttlSecondsAfterFinished", UNQUEUED),
    Row("rules and shutdown", "RayJob", RULES, on(1, 2), "J7", more=UNQUEUED),
    Row("rules and their older form", "RayJob", "spec.deletionStrategy", {"deletionRules": on(1, 2),
        "onSuccess": {"policy": "DeleteSelf"}, "onFailure": {"policy": "DeleteSelf"}}, "J8", more=(*UNENDED, *UNQUEUED)),
    Row("an empty strategy", "RayJob", "spec.deletionStrategy", {}, "J9"),
    Row("half of the older form", "RayJob", "spec.deletionStrategy.onSuccess", {"policy": "DeleteSelf"}, "J10",
        "spec.deletionStrategy"),
    Row("nothing deleted, and shutdown", "RayJob", "spec.deletionStrategy",
        {"onSuccess": {"policy": "DeleteNone"}, "onFailure": {"policy": "DeleteSelf"}}, "J13",
        "spec.deletionStrategy.onSuccess.policy"),
    Row("a rule without a condition", "RayJob", RULES, [{"policy": "DeleteSelf", "condition": {}}], "J14",
        f"{RULES}[0].condition", UNENDED),
    Row("one rule twice", "RayJob", RULES, [on(1, 2)[0]] * 2, "J18", f"{RULES}[1]", (*UNENDED, *UNQUEUED)),
    Row("workers after their cluster", "RayJob", RULES, on(20, 10), "J19", more=(*UNENDED, *UNQUEUED)),
    Row("workers deleted while scaling", "RayJob", RULES, on(1, 2), "J17", f"{RULES}[0].policy",
        (*UNENDED, *UNQUEUED, ("spec.rayClusterSpec.enableInTreeAutoscaling", True))),
    Row("neither cluster nor selector", "RayJob", "spec.rayClusterSpec", DELETED, "J21"),
    Row("a selector by another key", "RayJob", "spec.clusterSelector", {"cluster": "a"}, "J22", more=SELECTED),
    Row("a selector and a cluster", "RayJob", "spec.clusterSelector", {"ray.io/cluster": "a"}, "X4",
        more=(("spec.backoffLimit", 0), *UNQUEUED)),
    Row("a suspended job on another's cluster", "RayJob", "spec.suspend", True, "J20",
        more=(*SELECTED, ("spec.clusterSelector", {"ray.io/cluster": "a"}))),
    Row("a sidecar on another's cluster", "RayJob", "spec.submissionMode", "SidecarMode", "J23",
        more=(*SELECTED, ("spec.clusterSelector", {"ray.io/cluster": "a"}))),
    Row("retries on another's cluster", "RayJob", "spec.backoffLimit", 1, "J24",
        more=(("spec.rayClusterSpec", DELETED), *UNQUEUED, ("spec.clusterSelector", {"ray.io/cluster": "a"}))),
    Row("retries of a hand-fed job", "RayJob", "spec.submissionMode", "InteractiveMode", "J25", "spec.backoffLimit"),
    Row("a sidecar and a submitter", "RayJob", "spec.submitterPodTemplate", BARE_SUBMITTER, "J26",
        more=(("spec.submissionMode", "SidecarMode"),)),
    Row("a sidecar and settings of a submitter", "RayJob", "spec.submitterConfig", {"backoffLimit": 1}, "J27",
        more=(("spec.submissionMode", "SidecarMode"),)),
    Row("a head that starts again beside a sidecar", "RayJob", f"{HEAD}.template.spec.restartPolicy", "Always", "J28",
        more=(("spec.submissionMode", "SidecarMode"),)),
    Row("Kubernetes' own tokens", "RayJob", "spec.rayClusterSpec.authOptions", {"mode": "token", "enableK8sTokenAuth": True},
        "J29", "spec.rayClusterSpec.authOptions.enableK8sTokenAuth"),
    Row("no time at all", "RayJob", "spec.activeDeadlineSeconds", 0, "J31"),
    Row("a negative number of retries", "RayJob", "spec.backoffLimit", -1, "J32"),
    Row("a name of 48 characters", "RayJob", "metadata.name", "a" * 48, "J1"),
    Row("a name with a dot", "RayJob", "metadata.name", "moco.v2", "J2"),
    # the cluster
    Row("no container", "RayJob", f"{HEAD}.template.spec.containers", [], "C1"),
    Row("CPUs said twice", "RayJob", f"{HEAD}.resources", {"CPU": "1"}, "C2"),
    Row("labels as start parameter", "RayJob", f"{HEAD}.rayStartParams.labels", "a=b", "C3"),
    Row("a label with blanks", "RayJob", f"{WORKER}.labels", {"a": "b c"}, "C4"),
    Row("fewer than none", "RayJob", f"{WORKER}.minReplicas", -1, "C6"),
    Row("more at least than at most", "RayJob", f"{WORKER}.minReplicas", 3, "C7"),
    Row("more replicas than at most", "RayJob", f"{WORKER}.replicas", 5, "X11"),
    Row("idle time without the scaler that knows it", "RayJob", f"{WORKER}.idleTimeoutSeconds", 60, "C8"),
    Row("priority without the scaler that knows it", "RayJob", f"{WORKER}.priority", 1, "C9"),
    Row("Redis by hand", "RayJob", f"{HEAD}.{RAY}.env[0].name", "RAY_REDIS_ADDRESS", "C11", f"{HEAD}.{RAY}.env"),
    Row("a user of Redis by hand", "RayJob", f"{HEAD}.{RAY}.env[0].name", "REDIS_USERNAME", "C17", HEAD),
    Row("a Redis password by hand", "RayJob", "spec.rayClusterSpec.gcsFaultToleranceOptions", {"redisAddress": "a:6379"},
        "C12", more=((f"{HEAD}.rayStartParams.redis-password", "x"),)),
    Row("a backend behind a gate", "RayJob", "spec.rayClusterSpec.gcsFaultToleranceOptions.backend", "rocksdb", "C13"),
    Row("the second scaler without scaling", "RayJob", f"{HEAD}.{RAY}.env[0]",
        {"name": "RAY_enable_autoscaler_v2", "value": "1"}, "C19", f"{HEAD}.{RAY}.env"),
    Row("policies behind a gate", "RayJob", "spec.rayClusterSpec.networkPolicy", {}, "C28"),
    Row("certificates behind a gate", "RayJob", "spec.rayClusterSpec.tlsOptions", {}, "C32"),
    Row("tokens of an older Ray", "RayJob", "spec.rayClusterSpec.rayVersion", "2.51.0", "C26",
        "spec.rayClusterSpec.authOptions.mode"),
    Row("tokens without a mode", "RayJob", "spec.rayClusterSpec.authOptions", {}, "X7"),
    Row("two groups of one name", "RayJob", "spec.rayClusterSpec.workerGroupSpecs",
        [GROUP, GROUP], "X3"),
    Row("another Ray than the image's", "RayJob", f"{HEAD}.{RAY}.image", "registry/vergence:0.1.0-ray2.59.0", "X6"),
    Row("a head whose dashboard has no name", "RayJob", f"{HEAD}.{RAY}.ports", [{"containerPort": 8265}], "X8"),
    Row("fault tolerance said twice", "RayCluster", "metadata.annotations", {"ray.io/ft-enabled": "true"}, "C10",
        "metadata.annotations[ray.io/ft-enabled]", ((FT, {"redisAddress": "a:6379"}),)),
    Row("a claim and its size", "RayCluster", FT, {"backend": "rocksdb", "storage": {"claimName": "a", "size": "1Gi"}},
        "C14"),
    Row("a mount that the operator makes", "RayCluster", FT, {"backend": "rocksdb"}, "C15", HEAD_ENV,
        ((f"spec.headGroupSpec.{RAY}.env", [{"name": "RAY_gcs_storage", "value": "a"}]),)),
    Row("storage for Redis", "RayCluster", FT, {"redisAddress": "a:1", "storage": {"claimName": "a"}}, "C16"),
    Row("a suspended group that scales", "RayJob", f"{WORKER}.suspend", True, "C18",
        more=(("spec.rayClusterSpec.enableInTreeAutoscaling", True),)),
    Row("the scaler's version said twice", "RayCluster", "spec.autoscalerOptions", {"version": "v2"}, "C20", more=(
        ("spec.enableInTreeAutoscaling", True),
        (f"spec.headGroupSpec.{RAY}.env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]))),
    Row("pods that start again under the second scaler", "RayCluster", "spec.headGroupSpec.template.spec.restartPolicy",
        "Always", "C21", more=(("spec.enableInTreeAutoscaling", True), ("spec.autoscalerOptions", {"version": "v2"}))),
    Row("a negative idle time", "RayCluster", "spec.autoscalerOptions.idleTimeoutSeconds", -1, "C22"),
    Row("the operator's own variable", "RayCluster", "spec.autoscalerOptions.env",
        [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "a"}], "C23"),
    Row("a history behind a gate", "RayCluster", "spec.historyServerOptions", {"collectorOptions": {"image": "a:1"}}, "C24"),
    Row("a collector without a store", "RayCluster", "spec.historyServerOptions", {"collectorOptions": {"image": "a:1"}},
        "C25"),
    Row("Kubernetes' tokens beside a secret", "RayCluster", "spec.authOptions",
        {"mode": "token", "enableK8sTokenAuth": True, "secretName": "a"}, "C27", "spec.authOptions.enableK8sTokenAuth"),
    Row("rules for what is free", "RayCluster", "spec.networkPolicy",
        {"mode": "DenyAllEgress", "head": {"ingressRules": [{}]}}, "C29"),
    Row("a group whose name is no label", "RayJob", f"{WORKER}.groupName", "GPU_1", "C30",
        more=(("spec.rayClusterSpec.networkPolicy", {}),)),
    Row("rules for no group", "RayCluster", "spec.networkPolicy", {"workerGroups": [{"groupName": "a"}]}, "C31"),
    Row("certificates by hand", "RayCluster", "spec.tlsOptions", {"enabled": True}, "C33", "spec.headGroupSpec",
        ((f"spec.headGroupSpec.{RAY}.env", [{"name": "RAY_USE_TLS", "value": "1"}]),)),
    Row("an upgrade of services", "RayCluster", "spec.upgradeStrategy", {"type": "NewCluster"}, "C34",
        "spec.upgradeStrategy.type"),
    Row("a schedule of six fields", "RayCronJob", "spec.schedule", "0 0 3 * * *", "R1"),
    Row("a time zone that is none", "RayCronJob", "spec.timeZone", "Europe/Pari", "R1"),
    Row("another's cluster deleted", "RayJob", "spec.deletionStrategy",
        {"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteNone"}}, "J11",
        "spec.deletionStrategy.onSuccess.policy", (*SELECTED, ("spec.clusterSelector", {"ray.io/cluster": "a"}))),
    Row("another's cluster deleted by a rule", "RayJob", RULES, on(1, 2), "J16", f"{RULES}[0].policy",
        (*SELECTED, ("spec.clusterSelector", {"ray.io/cluster": "a"}))),
    Row("workers deleted while scaling, the older form", "RayJob", "spec.deletionStrategy",
        {"onSuccess": {"policy": "DeleteWorkers"}, "onFailure": {"policy": "DeleteNone"}}, "J12",
        "spec.deletionStrategy.onSuccess.policy", (("spec.rayClusterSpec.enableInTreeAutoscaling", True),)),
    Row("a rule before the end", "RayJob", RULES, on(-1, 2), "J15", f"{RULES}[0].condition.ttlSeconds"),
    # the service
    Row("Kubernetes' tokens for a service", "RayService", "spec.rayClusterConfig.authOptions",
        {"mode": "token", "enableK8sTokenAuth": True}, "S1", "spec.rayClusterConfig.authOptions.enableK8sTokenAuth"),
    Row("no positive time to start", "RayService", "metadata.annotations", {"ray.io/initializing-timeout": "soon"}, "S2",
        "metadata.annotations[ray.io/initializing-timeout]"),
    Row("a name for the operator's service", "RayService", "spec.rayClusterConfig.headGroupSpec.headService",
        {"metadata": {"name": "a"}}, "S3", "spec.rayClusterConfig.headGroupSpec.headService.metadata.name"),
    Row("an unknown upgrade", "RayService", "spec.upgradeStrategy", {"type": "Slowly"}, "S4", "spec.upgradeStrategy.type"),
    Row("deleted before it ends", "RayService", "spec.rayClusterDeletionDelaySeconds", -1, "S5"),
    Row("steps without a gateway", "RayService", "spec.upgradeStrategy", {"type": "NewClusterWithIncrementalUpgrade"}, "S6",
        "spec.upgradeStrategy.clusterUpgradeOptions"),
    Row("a field that nobody reads", "RayService", "spec.serviceUnhealthySecondThreshold", 5, "X12"),
    Row("no application", "RayService", "spec.serveConfigV2", "applications: []", "X13"),
    # the queue
    Row("scaling in a queue", "RayJob", "spec.rayClusterSpec.enableInTreeAutoscaling", True, "K1"),
    Row("a queue that gets nothing back", "RayJob", "spec.shutdownAfterJobFinishes", False, "K1"),
    Row("a group called head", "RayJob", f"{WORKER}.groupName", "head", "K1"),
    Row("a queue on the pod alone", "RayJob", f"{HEAD}.template.metadata.labels",
        {"app": "moco", "kueue.x-k8s.io/queue-name": "training"}, "K2",
        f"{HEAD}.template.metadata.labels[kueue.x-k8s.io/queue-name]", UNQUEUED),
    Row("rules in a queue", "RayJob", RULES, on(1, 2), "X5"),
    # pods
    Row("a GPU asked for without a limit", "RayJob", f"{HEAD}.{RAY}.resources.requests", {"nvidia.com/gpu": 1}, "P1",
        f"{HEAD}.{RAY}.resources"),
    Row("fewer GPUs than the limit", "RayJob", f"{WORKER}.{RAY}.resources.limits", {"nvidia.com/gpu": 2, "memory": "1Gi"},
        "P1", f"{WORKER}.{RAY}.resources", ((f"{WORKER}.{RAY}.resources.requests", {"nvidia.com/gpu": 1}),)),
    Row("a GPU node that is not tolerated", "RayJob", f"{WORKER}.template.spec.tolerations", DELETED, "P2"),
    Row("more GPUs said than there", "RayJob", f"{WORKER}.rayStartParams.num-gpus", "2", "P3"),
    Row("a mount without a volume", "RayJob", f"{HEAD}.{RAY}.volumeMounts[2].name", "run", "P4"),
    Row("two mounts at one place", "RayJob", f"{HEAD}.{RAY}.volumeMounts[2].mountPath", "/tmp", "P5",
        f"{HEAD}.{RAY}.volumeMounts"),
    Row("nowhere to write", "RayJob", f"{WORKER}.{RAY}.volumeMounts", [], "P6"),
    Row("a restricted head and the operator's submitter", "RayJob", "spec.submissionMode", "K8sJobMode", "P7",
        "spec.submitterPodTemplate"),
    Row("a restricted head and a bare submitter", "RayJob", "spec.submitterPodTemplate", BARE_SUBMITTER, "P7",
        "spec.submitterPodTemplate.spec.containers[0].securityContext", (("spec.submissionMode", "K8sJobMode"),)),
    Row("a password in plain text", "RayJob", f"{HEAD}.{RAY}.env[0].name", "DB_PASSWORD", "P8",
        f"{HEAD}.{RAY}.env[0].value"),
    Row("a password in an address", "RayJob", f"{HEAD}.{RAY}.env[0].value", "postgres://a:b@c/d", "P8"),
    Row("the latest image", "Deployment", "spec.template.spec.containers[0].image", "registry/mlflow:latest", "P9"),
    Row("an image without a tag", "RayJob", f"{HEAD}.{RAY}.image", "registry:5000/vergence", "P9"),
    Row("more asked for than allowed", "RayJob", f"{HEAD}.{RAY}.resources.requests.memory", "17Gi", "P10",
        f"{HEAD}.{RAY}.resources"),
    Row("a variable twice", "RayJob", f"{HEAD}.{RAY}.env", [{"name": "A", "value": "1"}] * 2, "P11"),
    Row("no memory limit", "RayJob", f"{HEAD}.{RAY}.resources", {"limits": {"cpu": "1"}}, "P12",
        f"{HEAD}.{RAY}.resources.limits"),
    # the bundle
    Row("a ConfigMap that is not there", "RayJob", f"{HEAD}.template.spec.volumes[1].configMap.name", "recipes", "B1"),
    Row("a claim that is not there", "RayJob", f"{HEAD}.template.spec.volumes[2].persistentVolumeClaim.claimName", "r",
        "B1"),
    Row("a secret that is not there", "RayJob", f"{HEAD}.{RAY}.env[1].valueFrom.secretKeyRef.name", "stores", "B1",
        f"{HEAD}.{RAY}.env[1].valueFrom.secretKeyRef"),
    Row("an account that is not there", "RayJob", f"{HEAD}.template.spec.serviceAccountName", "train", "B1"),
    Row("a queue that is not there", "RayJob", "metadata.labels", {"kueue.x-k8s.io/queue-name": "train"}, "B1",
        "metadata.labels[kueue.x-k8s.io/queue-name]"),
    Row("a priority that is not there", "RayJob", "metadata.labels",
        {"kueue.x-k8s.io/queue-name": "training", "kueue.x-k8s.io/priority-class": "high"}, "B1",
        "metadata.labels[kueue.x-k8s.io/priority-class]"),
    Row("a key that is not there", "RayJob", f"{HEAD}.template.spec.volumes[1].configMap.items",
        [{"key": "run.yaml", "path": "a"}], "B6", f"{HEAD}.template.spec.volumes[1].configMap.items[0]"),
    Row("a service of no pod", "Service", "spec.selector", {"app": "ml-flow"}, "B2"),
    Row("a deployment of other pods", "Deployment", "spec.selector.matchLabels", {"app": "other"}, "B2", "spec.selector"),
    Row("a policy for no pod", "NetworkPolicy", "spec.podSelector", {"matchLabels": {"app": "x"}}, "B2"),
    Row("no names outside", "NetworkPolicy", "spec.egress", [], "B3"),
    Row("names by TCP alone", "NetworkPolicy", "spec.egress[0].ports", [{"port": 53}], "B3", "spec.egress"),
    Row("a budget that cannot be counted", "PodDisruptionBudget", "spec", {"maxUnavailable": 0, "selector":
        {"matchLabels": {"app": "moco"}}}, "B4", "spec.maxUnavailable"),
    Row("two of one name", "ResourceFlavor", "metadata", {"name": "a100"}, "B5", "metadata.name"),
]  # fmt: skip


def sound() -> list[Document]:
    return parse(SOUND.read_text(), "sound.yaml")


def planted(row: Row) -> list[Document]:
    documents = copy.deepcopy(sound())
    wanted = next(document for document in documents if document.kind == row.kind)
    for path, value in (*row.more, (row.path, row.value)):
        put(wanted.value, path, value)
    return documents + ([wanted] if row.rule == "B5" else [])


def put(value: Any, path: str, new: Any) -> None:
    """Set what is at a path such as `a.b[0].c.d-e`; where mappings end early they go on."""
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path)]
    for step in steps[:-1]:
        value = value.setdefault(step, {}) if isinstance(value, dict) else value[step]
    if new is DELETED:
        del value[steps[-1]]
    else:
        value[steps[-1]] = copy.deepcopy(new)


def test_sound_bundle_has_no_faults() -> None:
    assert list(map(str, faults(sound()))) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.rule}: {row.what}")
def test_planted_fault_is_caught_by_name(row: Row) -> None:
    found = faults(planted(row))
    assert row.rule in {fault.finding.rule for fault in found}, list(map(str, found))
    places = [fault.finding.path for fault in found if fault.finding.rule == row.rule]
    assert any(place.startswith(row.at or row.path) for place in places), places


def test_every_rule_has_its_row() -> None:
    source = "".join(file.read_text() for file in Path(rayjob.__file__).parent.glob("*.py"))
    rules = set(re.findall(r'"((?:[BCJKPRSX][0-9]+)|CEL|schema|core-schema|unknown-kind)"', source))
    assert rules - {row.rule for row in ROWS} == set()
    assert len(rules) > 100


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "PWD", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"]
)
def test_variable_that_only_sounds_secret_is_none(name: str) -> None:
    assert faults(planted(Row("", "RayJob", f"{HEAD}.{RAY}.env[0].name", name, ""))) == []


@pytest.mark.parametrize(
    "name", ["PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "VERGENCE_SERVE_TOKEN", "DB_PWD"]
)
def test_variable_that_is_secret_is_refused(name: str) -> None:
    (fault,) = faults(planted(Row("", "RayJob", f"{HEAD}.{RAY}.env[0].name", name, "")))
    assert fault.finding.rule == "P8"


def test_shell_of_the_job_may_read_what_no_submitter_does() -> None:
    row = Row("", "RayJob", "spec.entrypoint", "cd /a && vergence pretrain b", "")
    assert [fault for fault in faults(planted(row)) if fault.finding.rule == "X9"] == []


def test_fault_says_file_object_path_rule_and_cure() -> None:
    row = next(row for row in ROWS if row.path == "spec.entryPoint")
    (fault,) = (fault for fault in faults(planted(row)) if fault.finding.rule == "schema")
    assert str(fault) == (
        "sound.yaml: RayJob/moco: spec.entryPoint: schema: no such field; did you mean entrypoint?"
    )
