"""Checks manifests without a cluster: shape, CEL, operator rules, pods, and what objects say about each other.

KubeRay and Kueue refuse after the API server has said yes, and nobody looks into pod templates of custom resources before
pods are made: this is the only gate that tells early. Rules by name: docs/kubernetes.md.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vergence.platform.jobs.check import kueue, pods, raycluster, rayjob, rayservice
from vergence.platform.jobs.check.bundle import between
from vergence.platform.jobs.check.documents import Bundle, bundles
from vergence.platform.jobs.check.finding import Document, Fault, Finding, Rule
from vergence.platform.jobs.check.schema import installed, shape

RULES: dict[str, Sequence[Rule]] = {
    "RayJob": (rayjob.name, rayjob.rayjob, kueue.queued),
    "RayCronJob": (rayjob.name, rayjob.raycronjob),
    "RayCluster": (rayjob.name, raycluster.raycluster),
    "RayService": (rayjob.name, rayservice.rayservice),
}


def check(path: Path) -> tuple[list[Bundle], list[Fault]]:
    """The bundles of a file or folder, and their faults. Raises UserError: see `bundles`."""
    found = bundles(path)
    return found, [fault for bundle in found for fault in faults(bundle.documents)]


def faults(documents: Sequence[Document]) -> list[Fault]:
    """Of objects that are applied together."""
    alone = [fault for document in documents for fault in faults_of(document)]
    return alone + list(between(documents))


def faults_of(document: Document) -> Iterator[Fault]:
    """Of one object by itself. Raises UserError: an extra is not installed."""
    installed()
    missing = [key for key in ("apiVersion", "kind") if not isinstance(document.value.get(key), str)]
    if missing:
        yield Fault(document, Finding(missing[0], "schema", "missing", "a manifest says apiVersion and kind"))
        return
    rules = RULES.get(document.kind, ()) if document.group == "ray.io" else ()
    for rule in (shape, *rules, pods.pods):
        for finding in rule(document):
            yield Fault(document, finding)
