"""Pod templates, wherever they stand: the API server looks into none that stand in a custom resource (X10, P*)."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from vergence.platform.jobs.check.finding import Document, Finding, Findings, dig, rows, table
from vergence.platform.jobs.check.raycluster import DNS_1123, groups
from vergence.platform.jobs.check.schema import core_shape
from vergence.platform.masking import masked

TEMPLATES = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), "spec.template"),
    "CronJob": "spec.jobTemplate.spec.template",
}
CLUSTERS = {
    "RayCluster": "spec",
    "RayJob": "spec.rayClusterSpec",
    "RayCronJob": "spec.jobTemplate.rayClusterSpec",
    "RayService": "spec.rayClusterConfig",
}
SUBMITTERS = {"RayJob": "spec", "RayCronJob": "spec.jobTemplate"}
SECRET_NAME = re.compile(
    r"passw(?:or)?d|(?:^|_)(?:secret|token|credentials?|api_?key|access_?key)(?:_|$)|_pwd$", re.IGNORECASE
)
NOT_SECRET = re.compile(r"_(FILE|PATH|MODE|URL|URI|NAME)$", re.IGNORECASE)
RESTARTS = ("Always", "OnFailure", "Never")
UNITS = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
UNITS |= {unit: 1000.0**power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)}
UNITS |= {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)}


class Template(NamedTuple):
    """A pod template of an object."""

    path: str
    value: dict[str, Any]
    group: dict[str, Any] | None = None  # the Ray group whose pods these are
    is_checked: bool = False  # as a pod, by the schema of its object
    claims: tuple[str, ...] = ()  # volumes that a StatefulSet makes

    @property
    def spec(self) -> dict[str, Any]:
        return table(self.value.get("spec"))

    @property
    def labels(self) -> dict[str, Any]:
        return table(dig(self.value, "metadata.labels"))

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Path and value of each container, those of the beginning first."""
        for kind in ("initContainers", "containers"):
            for i, container in enumerate(rows(self.spec.get(kind))):
                yield f"{self.path}.spec.{kind}[{i}]", container


def templates(document: Document) -> list[Template]:
    """Every pod template of an object; a pod is its own."""
    value = document.value
    if document.kind == "Pod":
        return [Template("", value, is_checked=True)]
    if path := TEMPLATES.get(document.kind):
        claims = tuple(
            str(dig(claim, "metadata.name")) for claim in rows(dig(value, "spec.volumeClaimTemplates"))
        )
        return [Template(path, table(dig(value, path)), None, True, claims)]
    found = []
    if path := CLUSTERS.get(document.kind):
        for place, group in groups(table(dig(value, path))):
            if "template" in group:
                found.append(Template(f"{path}.{place}.template", table(group["template"]), group))
    if path := SUBMITTERS.get(document.kind):
        submitter = dig(value, f"{path}.submitterPodTemplate")
        if submitter is not None:
            found.append(Template(f"{path}.submitterPodTemplate", table(submitter)))
    return found


def pods(document: Document) -> Findings:
    """All pod rules of an object."""
    found = templates(document)
    for template in found:
        if not template.is_checked:
            yield from _as_pod(template)
        yield from _volumes(template)
        for path, container in template.containers():
            yield from _container(path, container)
            yield from _resources(path, container, template)
        yield from _accelerators(template)
    yield from _restricted(document, found)


def _as_pod(template: Template) -> Findings:
    """X10: the template as a pod, by Kubernetes' own schema and by what its server asks besides."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template.spec}
    for path, _, message, cure in core_shape(pod):
        yield Finding(f"{template.path}.{path}", "X10", f"as a pod: {message}", cure)
    policy = template.spec.get("restartPolicy", "Always")
    if policy not in RESTARTS:
        path = f"{template.path}.spec.restartPolicy"
        yield Finding(path, "X10", f"as a pod: got {policy!r}", f"valid: {', '.join(RESTARTS)}")
    for path, container in template.containers():
        if not DNS_1123.fullmatch(str(container.get("name"))):
            message = f"as a pod: {container.get('name')!r} is no DNS-1123 label"
            yield Finding(f"{path}.name", "X10", message, "write small letters, digits and -")
        if not container.get("image"):
            yield Finding(f"{path}.image", "X10", "as a pod: missing", "write it")
    for i, volume in enumerate(rows(template.spec.get("volumes"))):
        if len(volume) != 2:
            sources = ", ".join(sorted(set(volume) - {"name"})) or "none"
            path = f"{template.path}.spec.volumes[{i}]"
            yield Finding(path, "X10", f"as a pod: sources: {sources}", "write a name and exactly one source")


def _volumes(template: Template) -> Findings:
    names = [str(volume.get("name")) for volume in rows(template.spec.get("volumes"))]
    for name, count in Counter(names).items():
        if count > 1:
            yield Finding(
                f"{template.path}.spec.volumes", "P11", f"{count} volumes are called {name}", "rename one"
            )
    for path, container in template.containers():
        mounts = rows(container.get("volumeMounts"))
        for i, mount in enumerate(mounts):
            if mount.get("name") not in [*names, *template.claims]:
                message = f"there is no volume {mount.get('name')!r}"
                cure = (
                    f"add it to {template.path}.spec.volumes, or mount one of: {', '.join(names) or 'none'}"
                )
                yield Finding(f"{path}.volumeMounts[{i}].name", "P4", message, cure)
        for where, count in Counter(str(mount.get("mountPath")).rstrip("/") for mount in mounts).items():
            if count > 1:
                yield Finding(f"{path}.volumeMounts", "P5", f"{count} mounts at {where}", "leave one out")
        is_read_only = dig(container, "securityContext.readOnlyRootFilesystem") is True
        if is_read_only and template.group is not None and "/tmp" not in {m.get("mountPath") for m in mounts}:
            message = (
                "the root file system is read-only and nothing is mounted at /tmp: Ray hangs without a word"
            )
            yield Finding(f"{path}.volumeMounts", "P6", message, "mount an emptyDir at /tmp")


def _container(path: str, container: dict[str, Any]) -> Findings:
    image = str(container.get("image", ""))
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if image and "@sha256:" not in image and tag in ("", "latest"):
        message = f"{image}: {'latest' if tag else 'no tag'}, which is another image tomorrow"
        yield Finding(f"{path}.image", "P9", message, "write a version or a digest")
    for key, what in ("env", "variables"), ("ports", "ports"):
        named = Counter(str(each.get("name")) for each in rows(container.get(key)) if "name" in each)
        for name in [name for name, count in named.items() if count > 1]:
            yield Finding(f"{path}.{key}", "P11", f"two {what} are called {name}", "leave one out")
    for i, each in enumerate(rows(container.get("env"))):
        name, value = str(each.get("name")), str(each.get("value", ""))
        if value and "$(" not in value and (_is_secret(name) or masked(value) != value):
            cure = "write valueFrom: {secretKeyRef: {name, key}}"
            yield Finding(f"{path}.env[{i}].value", "P8", f"{name} is a secret in plain text", cure)


def _is_secret(name: str) -> bool:
    return bool(SECRET_NAME.search(name)) and not NOT_SECRET.search(name)


def _resources(path: str, container: dict[str, Any], template: Template) -> Findings:
    requests, limits = table(dig(container, "resources.requests")), table(dig(container, "resources.limits"))
    for key in sorted(set(requests) & set(limits)):
        wanted, most = quantity(requests[key]), quantity(limits[key])
        if wanted is not None and most is not None and wanted > most:
            message = f"{key}: the request {requests[key]} is more than the limit {limits[key]}"
            yield Finding(f"{path}.resources", "P10", message, "raise the limit")
    for key in sorted(key for key in {*requests, *limits} if "gpu" in key):
        if key not in limits:
            yield Finding(
                f"{path}.resources", "P1", f"{key}: a request without a limit", "write the limit alone"
            )
        elif key in requests and quantity(requests[key]) != quantity(limits[key]):
            message = f"{key}: request {requests[key]}, limit {limits[key]}"
            yield Finding(f"{path}.resources", "P1", message, "write the limit alone")
    is_ray = template.group is not None and container is rows(template.spec.get("containers"))[0]
    if is_ray and "memory" not in limits:
        message = "no memory limit: Ray takes the whole node for its own"
        yield Finding(f"{path}.resources.limits", "P12", message, "write memory, and request the same")


def _accelerators(template: Template) -> Findings:
    """P2, P3: GPUs need a toleration, and Ray counts the limit."""
    limits: dict[str, float] = {}
    for _, container in template.containers():
        for key, value in table(dig(container, "resources.limits")).items():
            if "gpu" in key:
                limits[key] = limits.get(key, 0.0) + (quantity(value) or 0.0)
    tolerated = rows(template.spec.get("tolerations"))
    for key in sorted(limits):
        if limits[key] and not any(t.get("key", key) == key for t in tolerated):
            cure = f"add {{key: {key}, operator: Exists, effect: NoSchedule}}"
            yield Finding(
                f"{template.path}.spec.tolerations", "P2", f"none for {key}, whose nodes are tainted", cure
            )
    said = table(template.group and template.group.get("rayStartParams")).get("num-gpus")
    if said is not None and quantity(said) != sum(limits.values()):
        path = f"{template.path.removesuffix('.template')}.rayStartParams.num-gpus"
        yield Finding(
            path,
            "P3",
            f"says {said}, the limit is {sum(limits.values()):g}",
            "leave it out: Ray reads the limit",
        )


def _restricted(document: Document, found: list[Template]) -> Findings:
    """P7: where one pod of an object meets the standard `restricted`, the namespace may demand it of all."""
    open_paths = {template.path: path for template in found if (path := _unrestricted(template))}
    if len(open_paths) == len(found):
        return
    for path in open_paths.values():
        message = "is not restricted, other pods of this object are"
        yield Finding(path, "P7", message, "give it the same securityContext, of pod and container")
    if root := SUBMITTERS.get(document.kind):
        spec = table(dig(document.value, root))
        by_job = spec.get("submissionMode", "K8sJobMode") == "K8sJobMode"
        if by_job and "submitterPodTemplate" not in spec:
            message = "the operator's own submitter pod is not restricted, the head is: it is refused"
            yield Finding(
                f"{root}.submitterPodTemplate", "P7", message, "write one with the head's securityContext"
            )
    for key, path in CLUSTERS.items():
        cluster = table(dig(document.value, path)) if key == document.kind else {}
        if cluster.get("enableInTreeAutoscaling") is True and not dig(
            cluster, "autoscalerOptions.securityContext"
        ):
            message = "the autoscaler beside a restricted head is not restricted"
            yield Finding(f"{path}.autoscalerOptions.securityContext", "P7", message, "write the head's")


def _unrestricted(template: Template) -> str | None:
    """The first place that the pod security standard `restricted` refuses."""
    pod = table(template.spec.get("securityContext"))
    for path, container in template.containers():
        own = table(container.get("securityContext"))
        profile = dig(own, "seccompProfile.type") or dig(pod, "seccompProfile.type")
        if not (
            own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True
            and own.get("allowPrivilegeEscalation") is False
            and "ALL" in (dig(own, "capabilities.drop") or [])
            and profile in ("RuntimeDefault", "Localhost")
        ):
            return f"{path}.securityContext"
    return None


def quantity(value: Any) -> float | None:
    """A quantity of Kubernetes as a number; None for what is none."""
    found = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([KMGTPE]i|[numkMGTPE]?)", str(value))
    return float(found[1]) * UNITS[found[2]] if found else None
