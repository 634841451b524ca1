"""What Kueue's webhook refuses of an object with a queue label (K*)."""

from vergence.platform.jobs.check.finding import Document, Finding, Findings, dig, rows, table
from vergence.platform.jobs.check.raycluster import groups

QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"


def queued(document: Document) -> Findings:
    """K1, K2 and X5, of a RayJob."""
    spec, labels = table(document.value.get("spec")), table(dig(document.value, "metadata.labels"))
    cluster = table(spec.get("rayClusterSpec"))
    if QUEUE not in labels:
        for path, group in groups(cluster):
            if QUEUE in table(dig(group, "template.metadata.labels")):
                where = f"spec.rayClusterSpec.{path}.template.metadata.labels[{QUEUE}]"
                yield Finding(
                    where, "K2", "Kueue looks at the RayJob's own labels", "move it to metadata.labels"
                )
        return
    if spec.get("shutdownAfterJobFinishes") is not True:
        message = "a queued job must give its quota back"
        yield Finding("spec.shutdownAfterJobFinishes", "K1", message, "set shutdownAfterJobFinishes: true")
    if "clusterSelector" in spec:
        yield Finding("spec.clusterSelector", "K1", "a queued job brings its own cluster", "leave it out")
    elastic = table(dig(document.value, "metadata.annotations")).get("kueue.x-k8s.io/elastic-job") == "true"
    if cluster.get("enableInTreeAutoscaling") is True and not elastic:
        cure = "set it to false, or leave the queue label out"
        yield Finding(
            "spec.rayClusterSpec.enableInTreeAutoscaling", "K1", "Kueue counts a fixed number of pods", cure
        )
    if dig(spec, "deletionStrategy.deletionRules"):
        message = "Kueue needs shutdownAfterJobFinishes, which excludes them (J7)"
        yield Finding("spec.deletionStrategy.deletionRules", "X5", message, "leave them out")
    workers = rows(cluster.get("workerGroupSpecs"))
    most = 16 if spec.get("submissionMode", "K8sJobMode") == "K8sJobMode" else 17
    if len(workers) > most:
        yield Finding(
            "spec.rayClusterSpec.workerGroupSpecs", "K1", f"{len(workers)} groups", f"at most {most}"
        )
    for i, group in enumerate(workers):
        if group.get("groupName") == "head":
            path = f"spec.rayClusterSpec.workerGroupSpecs[{i}].groupName"
            yield Finding(path, "K1", "head is the head's", "choose another name")
