"""RayCluster specs, wherever they stand: KubeRay's operator rules (C*) and ours (X*).

KubeRay v1.7.0, ray-operator/controllers/ray/utils/validation.go, its gates as they are by default.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from vergence.platform.jobs.check.finding import Document, Finding, Findings, dig, number, rows, table

QUALIFIED = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?)?")
DNS_1123 = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
V2_ENV = "RAY_enable_autoscaler_v2"
TLS_ENV = ("RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
COLLECTOR_ENV = (
    *(
        "POD_IP",
        "FQ_RAY_IP",
        "RAY_CLUSTER_NAME",
        "RAY_CLUSTER_NAMESPACE",
        "RAY_ROLE",
        "OWNER_KIND",
        "OWNER_NAME",
    ),
    "EVENTS_PORT",
)


def raycluster(document: Document) -> Findings:
    spec = table(document.value.get("spec"))
    yield from cluster_spec(spec, "spec")
    upgrade = dig(spec, "upgradeStrategy.type")
    if upgrade not in (None, "Recreate", "None"):
        yield Finding("spec.upgradeStrategy.type", "C34", f"got {upgrade!r}", "valid: Recreate, None")
    annotations = table(dig(document.value, "metadata.annotations"))
    fault_tolerant = "gcsFaultToleranceOptions" in spec
    for key, rule in ("ray.io/ft-enabled", "C10"), ("ray.io/external-storage-namespace", "C12"):
        if fault_tolerant and annotations.get(key):
            cure = "use the fields of gcsFaultToleranceOptions alone"
            yield Finding(
                f"metadata.annotations[{key}]", rule, "stands beside gcsFaultToleranceOptions", cure
            )


def cluster_spec(spec: dict[str, Any], root: str) -> Findings:
    """All rules of a RayCluster's spec that stands at the path `root`."""
    for rules in (_groups, _names, _ports, _auth, _autoscaler, _fault_tolerance, _gated):
        for path, rule, message, cure in rules(spec):
            yield Finding(f"{root}.{path}", rule, message, cure)


def groups(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and spec of the head group, then of each worker group."""
    yield "headGroupSpec", table(spec.get("headGroupSpec"))
    for i, group in enumerate(rows(spec.get("workerGroupSpecs"))):
        yield f"workerGroupSpecs[{i}]", group


def ray_container(group: dict[str, Any]) -> dict[str, Any]:
    """The first container of a group's pods: the one that runs Ray."""
    containers = rows(dig(group, "template.spec.containers"))
    return containers[0] if containers else {}


def _env(container: dict[str, Any]) -> dict[str, Any]:
    return {str(each.get("name")): each.get("value") for each in rows(container.get("env"))}


def _v2(spec: dict[str, Any]) -> bool:
    """Whether the autoscaler is version 2, as the operator sees it."""
    head = _env(ray_container(table(spec.get("headGroupSpec"))))
    scales = spec.get("enableInTreeAutoscaling") is True
    return scales and (dig(spec, "autoscalerOptions.version") == "v2" or head.get(V2_ENV) in ("1", "true"))


def _at_least(version: Any, wanted: tuple[int, int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", str(version))
    return numbers is not None and tuple(map(int, numbers.groups())) >= wanted


def _groups(spec: dict[str, Any]) -> Findings:
    scales, version = spec.get("enableInTreeAutoscaling") is True, spec.get("rayVersion")
    for path, group in groups(spec):
        params = table(group.get("rayStartParams"))
        if not rows(dig(group, "template.spec.containers")):
            yield Finding(
                f"{path}.template.spec.containers", "C1", "is empty", "write the container that runs Ray"
            )
        if "resources" in group and (both := [key for key in RESOURCE_PARAMS if key in params]):
            cure = f"leave {', '.join(both)} out of rayStartParams"
            yield Finding(f"{path}.resources", "C2", "stands beside rayStartParams about the same", cure)
        if "labels" in params:
            yield Finding(
                f"{path}.rayStartParams.labels", "C3", "has a field of its own", f"write {path}.labels"
            )
        for key, value in table(group.get("labels")).items():
            if not QUALIFIED.fullmatch(str(key)) or not LABEL_VALUE.fullmatch(str(value)):
                yield Finding(
                    f"{path}.labels", "C4", f"{key}={value} is no label", "letters, digits, -, _ and ."
                )
        policy = dig(group, "template.spec.restartPolicy")
        if policy not in (None, "Never") and dig(spec, "autoscalerOptions.version") == "v2" and scales:
            cure = "write Never, or leave it out"
            yield Finding(
                f"{path}.template.spec.restartPolicy", "C21", f"got {policy} with autoscaler v2", cure
            )
        if path == "headGroupSpec":
            continue
        yield from _bounds(path, group)
        idle = number(group.get("idleTimeoutSeconds"))
        if idle is not None and (idle < 0 or not _v2(spec)):
            cure = "write 0 or more, and autoscalerOptions.version: v2"
            yield Finding(f"{path}.idleTimeoutSeconds", "C8", f"got {idle}", cure)
        if number(group.get("priority")) and not (_v2(spec) and _at_least(version, (2, 56, 0))):
            yield Finding(f"{path}.priority", "C9", "needs Ray 2.56 and autoscaler v2", "leave it out")
        if group.get("suspend") is True and scales:
            yield Finding(f"{path}.suspend", "C18", "not with autoscaling", "leave one of the two out")


def _bounds(path: str, group: dict[str, Any]) -> Findings:
    """C5 is about fields that the CRD fills in, so it never shows."""
    low, high = number(group.get("minReplicas", 0)), number(group.get("maxReplicas", 2**31 - 1))
    if low is None or high is None:
        return
    for key, value in ("minReplicas", low), ("maxReplicas", high):
        if value < 0:
            yield Finding(f"{path}.{key}", "C6", f"got {value}", "write 0 or more")
    if low > high:
        yield Finding(f"{path}.minReplicas", "C7", f"{low} is more than maxReplicas {high}", "lower it")
        return
    replicas = number(group.get("replicas", low))
    if replicas is not None and not low <= replicas <= high:
        message = f"{replicas} is not between minReplicas {low} and maxReplicas {high}, and is moved there without a word"
        yield Finding(f"{path}.replicas", "X11", message, "write a number between them")


def _names(spec: dict[str, Any]) -> Findings:
    names = [str(group.get("groupName")) for group in rows(spec.get("workerGroupSpecs"))]
    for name, count in Counter(names).items():
        if count > 1:
            yield Finding(
                "workerGroupSpecs", "X3", f"{count} groups are called {name}", "give each a name of its own"
            )


def _ports(spec: dict[str, Any]) -> Findings:
    """X8, and X6: does the image have the Ray that rayVersion says?"""
    path = "headGroupSpec.template.spec.containers[0]"
    container = ray_container(table(spec.get("headGroupSpec")))
    ports = [port.get("name") for port in rows(container.get("ports"))]
    if ports and "dashboard" not in ports:
        cure = "add {name: dashboard, containerPort: 8265}, or leave ports out"
        yield Finding(f"{path}.ports", "X8", "no port is named dashboard, the operator looks for it", cure)
    version = str(spec.get("rayVersion", ""))
    for group_path, group in groups(spec):
        image = str(ray_container(group).get("image", ""))
        tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        official = "/ray" in f"/{image.partition(':')[0]}" and image.partition(":")[0].rpartition("/")[
            2
        ].startswith("ray")
        found = re.search(r"ray[-_]?(\d+\.\d+\.\d+)", tag) or (
            re.match(r"(\d+\.\d+\.\d+)", tag) if official else None
        )
        if version and found and found[1] != version:
            message = f"the image has Ray {found[1]}, rayVersion says {version}"
            yield Finding(
                f"{group_path}.template.spec.containers[0].image", "X6", message, "make both the same"
            )


def _auth(spec: dict[str, Any]) -> Findings:
    if "authOptions" not in spec:
        return
    options, version = table(spec["authOptions"]), spec.get("rayVersion")
    if "mode" not in options:
        message = "lacks mode: the operator makes a token and asks nobody for it"
        yield Finding("authOptions", "X7", message, "write mode: token")
    if options.get("mode") == "token" and not _at_least(version, (2, 52, 0)):
        message = f"tokens need Ray 2.52.0, rayVersion is {version or 'not there'}"
        yield Finding("authOptions.mode", "C26", message, "raise rayVersion, with the image's Ray")
    if options.get("enableK8sTokenAuth") is True:
        wrong = [
            *(["rayVersion below 2.55.0"] if not _at_least(version, (2, 55, 0)) else []),
            *(["secretName"] if "secretName" in options else []),
            *(["a mode that is not token"] if options.get("mode") != "token" else []),
        ]
        if wrong:
            yield Finding(
                "authOptions.enableK8sTokenAuth", "C27", f"not with {', '.join(wrong)}", "leave it out"
            )


def _autoscaler(spec: dict[str, Any]) -> Findings:
    options, scales = table(spec.get("autoscalerOptions")), spec.get("enableInTreeAutoscaling") is True
    path = "headGroupSpec.template.spec.containers[0].env"
    switch = _env(ray_container(table(spec.get("headGroupSpec")))).get(V2_ENV)
    if switch in ("1", "true") and not scales:
        yield Finding(
            path, "C19", f"{V2_ENV} without autoscaling", "set enableInTreeAutoscaling: true, or leave it out"
        )
    if switch is not None and "version" in options and scales:
        yield Finding(
            "autoscalerOptions.version",
            "C20",
            f"stands beside {V2_ENV} of the head",
            "leave the variable out",
        )
    if (number(options.get("idleTimeoutSeconds")) or 0) < 0:
        yield Finding("autoscalerOptions.idleTimeoutSeconds", "C22", "is negative", "write 0 or more")
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in _env(options):
        yield Finding("autoscalerOptions.env", "C23", "the operator sets this variable", "leave it out")


def _fault_tolerance(spec: dict[str, Any]) -> Findings:
    head = table(spec.get("headGroupSpec"))
    environment, params = _env(ray_container(head)), table(head.get("rayStartParams"))
    env_path = "headGroupSpec.template.spec.containers[0].env"
    cure = "use gcsFaultToleranceOptions"
    for where, found in (
        ("rayStartParams.redis-username", params.get("redis-username")),
        ("env", environment.get("REDIS_USERNAME")),
    ):
        if found is not None:
            yield Finding(f"headGroupSpec.{where}", "C17", "a Redis user by hand", f"{cure}.redisUsername")
    if "gcsFaultToleranceOptions" not in spec:
        if "RAY_REDIS_ADDRESS" in environment:
            yield Finding(env_path, "C11", "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions", cure)
        return
    options = table(spec["gcsFaultToleranceOptions"])
    by_hand = [*(["redis-password"] if "redis-password" in params else [])]
    by_hand += [key for key in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS") if key in environment]
    if by_hand:
        yield Finding(
            "gcsFaultToleranceOptions", "C12", f"{', '.join(by_hand)} by hand beside it", "leave them out"
        )
    if options.get("backend") == "rocksdb":
        message = "the gate GCSFaultToleranceEmbeddedStorage is off by default"
        yield Finding("gcsFaultToleranceOptions.backend", "C13", message, "use redis")
        storage = table(options.get("storage"))
        if "claimName" in storage and {"size", "storageClassName", "accessModes"} & set(storage):
            yield Finding(
                "gcsFaultToleranceOptions.storage", "C14", "a claim and a size", "leave claimName alone"
            )
        mounts = rows(ray_container(head).get("volumeMounts"))
        taken = {"RAY_gcs_storage", "RAY_gcs_storage_path"} & set(environment)
        if taken or any(m.get("name") == "gcs-storage" or m.get("mountPath") == "/data/gcs" for m in mounts):
            yield Finding(
                env_path, "C15", "the operator sets gcs-storage and its variables", "leave them out"
            )
    elif "storage" in options:
        yield Finding("gcsFaultToleranceOptions.storage", "C16", "is for rocksdb", "leave it out")


def _gated(spec: dict[str, Any]) -> Findings:
    """C24, C25, C28 to C33: fields whose gates are off by default, and their own rules."""
    if "historyServerOptions" in spec:
        yield Finding("historyServerOptions", "C24", "its gate is off by default", "leave it out")
        collector = table(dig(spec, "historyServerOptions.collectorOptions"))
        if not collector.get("image"):
            yield Finding("historyServerOptions.collectorOptions", "C24", "has no image", "write one")
        if managed := [key for key in COLLECTOR_ENV if key in _env(collector)]:
            path = "historyServerOptions.collectorOptions.env"
            yield Finding(path, "C25", f"the operator sets {', '.join(managed)}", "leave them out")
        elif collector and not _env(collector).get("STORAGE_BACKEND"):
            yield Finding(
                "historyServerOptions.collectorOptions.env",
                "C25",
                "no STORAGE_BACKEND",
                "write it as a value",
            )
    if "networkPolicy" in spec:
        yield Finding(
            "networkPolicy",
            "C28",
            "the gate RayClusterNetworkPolicy is off by default",
            "write NetworkPolicies",
        )
        yield from _network_policy(spec, table(spec["networkPolicy"]))
    if "tlsOptions" in spec:
        yield Finding("tlsOptions", "C32", "the gate RayClusterMTLS is off by default", "leave it out")
        containers = [
            (f"{path}.template.spec.containers[0]", ray_container(group)) for path, group in groups(spec)
        ]
        for path, container in [*containers, ("autoscalerOptions", table(spec.get("autoscalerOptions")))]:
            mounts = rows(container.get("volumeMounts"))
            mounted = any(m.get("name") == "ray-tls" or m.get("mountPath") == "/etc/ray/tls" for m in mounts)
            if mounted or set(TLS_ENV) & set(_env(container)):
                yield Finding(path, "C33", "certificates by hand beside tlsOptions", "leave them out")


def _network_policy(spec: dict[str, Any], policy: dict[str, Any]) -> Findings:
    mode = policy.get("mode")
    names = {str(group.get("groupName")) for group in rows(spec.get("workerGroupSpecs"))}
    parts = [("head", table(policy.get("head"))), ("worker", table(policy.get("worker")))]
    parts += [(f"workerGroups[{i}]", part) for i, part in enumerate(rows(policy.get("workerGroups")))]
    for path, part in parts:
        for key, free in ("ingressRules", "DenyAllEgress"), ("egressRules", "DenyAllIngress"):
            if part.get(key) and mode == free:
                yield Finding(
                    f"networkPolicy.{path}.{key}", "C29", f"{free} does not restrict them", "leave them out"
                )
        if path.startswith("workerGroups") and part.get("groupName") not in names:
            message = f"there is no group {part.get('groupName')!r}"
            yield Finding(
                f"networkPolicy.{path}.groupName", "C31", message, f"valid: {', '.join(sorted(names))}"
            )
    for i, group in enumerate(rows(spec.get("workerGroupSpecs"))):
        if not DNS_1123.fullmatch(str(group.get("groupName"))):
            cure = "small letters, digits and -"
            yield Finding(
                f"workerGroupSpecs[{i}].groupName",
                "C30",
                f"{group.get('groupName')!r} is no DNS-1123 label",
                cure,
            )
