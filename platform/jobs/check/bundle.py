"""What the objects of a bundle say about each other (B*)."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from vergence.platform.jobs.check.finding import Document, Fault, Finding, dig, rows, table
from vergence.platform.jobs.check.kueue import PRIORITY, QUEUE
from vergence.platform.jobs.check.pods import CLUSTERS, Template, templates

# what is there before the bundle is applied: "Secret/mlflow-store PersistentVolumeClaim/data", on any object of it
PROVIDED = "vergence/provided"
CLUSTER_WIDE = (
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterQueue",
    "ResourceFlavor",
    "StorageClass",
)
References = Iterator[tuple[str, str, str]]  # path, kind, name


class Names:
    """The objects that a bundle may name."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = list(documents)
        self.provided: set[str] = set()
        for document in self.documents:
            said = table(dig(document.value, "metadata.annotations")).get(PROVIDED, "")
            self.provided |= set(str(said).split())

    def find(self, kind: str, name: str, namespace: str | None) -> Document | None:
        for document in self.documents:
            is_near = kind in CLUSTER_WIDE or namespace is None or document.namespace in (None, namespace)
            if document.kind == kind and document.name == name and is_near:
                return document
        return None

    def has(self, kind: str, name: str, namespace: str | None) -> bool:
        return f"{kind}/{name}" in self.provided or self.find(kind, name, namespace) is not None


def between(documents: Iterable[Document]) -> Iterator[Fault]:
    """All faults that only the whole bundle shows."""
    names = Names(documents)
    pods = [(document, template) for document in names.documents for template in templates(document)]
    yield from _twins(names)
    for document in names.documents:
        yield from _references(document, names)
        yield from _selectors(document, pods)
    yield from _names_resolved(names, pods)


def _twins(names: Names) -> Iterator[Fault]:
    """B5: the second one replaces the first."""
    keys = [(each.kind, each.namespace, each.name) for each in names.documents]
    for document, key in zip(names.documents, keys):
        if Counter(keys)[key] > 1:
            yield Fault(
                document, Finding("metadata.name", "B5", f"two objects are {key[0]}/{key[2]}", "rename one")
            )
            return


# --- names


def _references(document: Document, names: Names) -> Iterator[Fault]:
    """B1: what is named must be there; B6: so must the key of it."""
    for path, kind, name in _named(document):
        if not names.has(kind, name, document.namespace):
            cure = (
                f"add it to the bundle, or say on an object of it: annotations: {{{PROVIDED}: {kind}/{name}}}"
            )
            yield Fault(document, Finding(path, "B1", f"there is no {kind} {name!r} in the bundle", cure))
    for template in templates(document):
        for path, kind, name, key in _keys(template):
            found = names.find(kind, name, document.namespace)
            if found is None:
                continue
            valid = {**table(found.value.get("data")), **table(found.value.get("stringData"))}
            if key not in valid:
                message = f"{kind} {name!r} has no key {key!r}"
                yield Fault(
                    document, Finding(path, "B6", message, f"valid: {', '.join(sorted(valid)) or 'none'}")
                )


def _named(document: Document) -> References:
    """Path, kind and name of every other object that this one needs."""
    for template in templates(document):
        yield from _named_by_pod(template)
    value = document.value
    labels = table(dig(value, "metadata.labels")) if document.group == "ray.io" else {}
    for key, kind in (QUEUE, "LocalQueue"), (PRIORITY, "WorkloadPriorityClass"):
        if key in labels:
            yield f"metadata.labels[{key}]", kind, str(labels[key])
    if document.kind == "LocalQueue":
        yield "spec.clusterQueue", "ClusterQueue", str(dig(value, "spec.clusterQueue"))
    if document.kind == "ClusterQueue":
        for i, group in enumerate(rows(dig(value, "spec.resourceGroups"))):
            for j, flavor in enumerate(rows(group.get("flavors"))):
                path = f"spec.resourceGroups[{i}].flavors[{j}].name"
                yield path, "ResourceFlavor", str(flavor.get("name"))
    if document.kind in ("RoleBinding", "ClusterRoleBinding"):
        yield "roleRef", str(dig(value, "roleRef.kind")), str(dig(value, "roleRef.name"))
        for i, subject in enumerate(rows(value.get("subjects"))):
            if subject.get("kind") == "ServiceAccount":
                yield f"subjects[{i}]", "ServiceAccount", str(subject.get("name"))
    cluster = CLUSTERS.get(document.kind)
    if cluster and (secret := dig(value, f"{cluster}.authOptions.secretName")):
        yield f"{cluster}.authOptions.secretName", "Secret", str(secret)
    if document.kind == "StatefulSet" and (service := dig(value, "spec.serviceName")):
        yield "spec.serviceName", "Service", str(service)


def _named_by_pod(template: Template) -> References:
    spec, root = template.spec, f"{template.path}.spec"
    account = spec.get("serviceAccountName")
    if account not in (None, "default"):
        yield f"{root}.serviceAccountName", "ServiceAccount", str(account)
    for i, secret in enumerate(rows(spec.get("imagePullSecrets"))):
        yield f"{root}.imagePullSecrets[{i}]", "Secret", str(secret.get("name"))
    for i, volume in enumerate(rows(spec.get("volumes"))):
        sources = [(volume, f"{root}.volumes[{i}]")]
        projected = rows(dig(volume, "projected.sources"))
        sources += [
            (source, f"{root}.volumes[{i}].projected.sources[{j}]") for j, source in enumerate(projected)
        ]
        for source, path in sources:
            if "persistentVolumeClaim" in source:
                claim = str(dig(source, "persistentVolumeClaim.claimName"))
                yield f"{path}.persistentVolumeClaim.claimName", "PersistentVolumeClaim", claim
            if "configMap" in source and not dig(source, "configMap.optional"):
                yield f"{path}.configMap.name", "ConfigMap", str(dig(source, "configMap.name"))
            if "secret" in source and not dig(source, "secret.optional"):
                name = dig(source, "secret.secretName") or dig(source, "secret.name")
                yield f"{path}.secret", "Secret", str(name)
    for path, container in template.containers():
        for i, each in enumerate(rows(container.get("env"))):
            for key, kind in ("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap"):
                reference = table(dig(each, f"valueFrom.{key}"))
                if reference and not reference.get("optional"):
                    yield f"{path}.env[{i}].valueFrom.{key}", kind, str(reference.get("name"))
        for i, each in enumerate(rows(container.get("envFrom"))):
            for key, kind in ("secretRef", "Secret"), ("configMapRef", "ConfigMap"):
                reference = table(each.get(key))
                if reference and not reference.get("optional"):
                    yield f"{path}.envFrom[{i}].{key}", kind, str(reference.get("name"))


def _keys(template: Template) -> Iterator[tuple[str, str, str, str]]:
    """Path, kind, name and key of every single value that a pod takes from another object."""
    for i, volume in enumerate(rows(template.spec.get("volumes"))):
        for j, item in enumerate(rows(dig(volume, "configMap.items"))):
            path = f"{template.path}.spec.volumes[{i}].configMap.items[{j}]"
            yield path, "ConfigMap", str(dig(volume, "configMap.name")), str(item.get("key"))
    for path, container in template.containers():
        for i, each in enumerate(rows(container.get("env"))):
            for key, kind in ("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap"):
                if reference := table(dig(each, f"valueFrom.{key}")):
                    where = f"{path}.env[{i}].valueFrom.{key}"
                    yield where, kind, str(reference.get("name")), str(reference.get("key"))


# --- labels


def pod_labels(document: Document, template: Template) -> dict[str, str]:
    """Labels of the pods, those that KubeRay adds included."""
    labels = {key: str(value) for key, value in template.labels.items()}
    if template.group is None:
        if document.kind == "RayJob":  # its submitter
            labels |= {
                "ray.io/originated-from-cr-name": document.name,
                "ray.io/originated-from-crd": "RayJob",
            }
        return labels
    is_head = "groupName" not in template.group
    labels |= {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head" if is_head else "worker"}
    labels |= {"app.kubernetes.io/created-by": "kuberay-operator", "app.kubernetes.io/name": "kuberay"}
    labels["ray.io/group"] = "headgroup" if is_head else str(template.group["groupName"])
    if document.kind == "RayCluster":  # elsewhere its name ends at random
        labels["ray.io/cluster"] = document.name
    return labels


def matches(selector: Any, labels: dict[str, str]) -> bool:
    """Whether a selector with matchLabels and matchExpressions takes an object with these labels."""
    wanted = table(table(selector).get("matchLabels"))
    if any(labels.get(key) != str(value) for key, value in wanted.items()):
        return False
    for each in rows(table(selector).get("matchExpressions")):
        key, values = str(each.get("key")), [str(value) for value in each.get("values", [])]
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds.get(str(each.get("operator")), False):
            return False
    return True


Pods = list[tuple[Document, Template]]


def _selectors(document: Document, pods: Pods) -> Iterator[Fault]:
    """B2: a selector that takes no pod; B4: a budget that cannot be counted."""
    for path, selector in _own_selectors(document):
        inside = [
            pair
            for pair in pods
            if document.namespace is None or pair[0].namespace in (None, document.namespace)
        ]
        taken = [pair for pair in inside if matches(selector, pod_labels(*pair))]
        if not taken:
            text = ", ".join(
                f"{key}={value}" for key, value in table(table(selector).get("matchLabels")).items()
            )
            cure = "make it the labels of a pod template of the bundle"
            yield Fault(
                document, Finding(path, "B2", f"no pod of the bundle has {text or 'such labels'}", cure)
            )
        is_ray = any(template.group is not None for _, template in taken)
        if (
            document.kind == "PodDisruptionBudget"
            and "maxUnavailable" in table(document.value.get("spec"))
            and is_ray
        ):
            message = "Ray's pods have no controller that Kubernetes could count them by"
            yield Fault(document, Finding("spec.maxUnavailable", "B4", message, "write minAvailable"))
    for template in templates(document) if document.group == "apps" else []:
        if not matches(dig(document.value, "spec.selector"), pod_labels(document, template)):
            message = "does not take the pods of its own template"
            yield Fault(
                document, Finding("spec.selector", "B2", message, f"make it the labels of {template.path}")
            )


def _own_selectors(document: Document) -> Iterator[tuple[str, Any]]:
    """Path and selector of what an object wants of pods; a selector that takes all of them wants nothing."""
    spec = table(document.value.get("spec"))
    if document.kind == "Service" and spec.get("selector"):
        yield "spec.selector", {"matchLabels": spec["selector"]}
    if document.kind == "PodDisruptionBudget" and spec.get("selector"):
        yield "spec.selector", spec["selector"]
    if document.kind != "NetworkPolicy":
        return
    if spec.get("podSelector"):
        yield "spec.podSelector", spec["podSelector"]
    for direction, side in ("ingress", "from"), ("egress", "to"):
        for i, rule in enumerate(rows(spec.get(direction))):
            for j, peer in enumerate(rows(rule.get(side))):
                if peer.get("podSelector") and "namespaceSelector" not in peer:
                    yield f"spec.{direction}[{i}].{side}[{j}].podSelector", peer["podSelector"]


# --- the network


def _names_resolved(names: Names, pods: Pods) -> Iterator[Fault]:
    """B3: a pod whose way out is fenced needs DNS, or it finds nobody, Ray's head among them."""
    policies = [document for document in names.documents if document.kind == "NetworkPolicy"]
    for document, template in pods:
        labels = pod_labels(document, template)
        fences = [
            policy
            for policy in policies
            if _fences(policy) and matches(dig(policy.value, "spec.podSelector"), labels)
        ]
        open_to = {protocol for policy in fences for protocol in _dns(policy)}
        if fences and open_to != {"UDP", "TCP"}:
            lacking = " and ".join(sorted({"UDP", "TCP"} - open_to))
            message = f"pods of {document.kind}/{document.name} ({template.path or 'itself'}) get no DNS ({lacking} 53)"
            cure = "allow egress to port 53 of kube-system, UDP and TCP"
            yield Fault(fences[0], Finding("spec.egress", "B3", message, cure))


def _fences(policy: Document) -> bool:
    kinds = dig(policy.value, "spec.policyTypes")
    return "Egress" in kinds if isinstance(kinds, list) else "egress" in table(policy.value.get("spec"))


def _dns(policy: Document) -> set[str]:
    """Protocols by which a policy lets port 53 out to somewhere beyond its own pods."""
    found = set()
    for rule in rows(dig(policy.value, "spec.egress")):
        peers = rows(rule.get("to"))
        if peers and not any("namespaceSelector" in peer or "ipBlock" in peer for peer in peers):
            continue
        if "ports" not in rule:
            found |= {"UDP", "TCP"}
        for port in rows(rule.get("ports")):
            if re.fullmatch(r"53|dns|dns-tcp|None", str(port.get("port"))):
                found.add(str(port.get("protocol", "TCP")))
    return found
