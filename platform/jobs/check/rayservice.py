"""RayService: KubeRay's operator rules (S*) and what its Serve config must be."""

import re

import yaml

from vergence.platform.jobs.check.finding import Document, Finding, Findings, dig, number, rows, table
from vergence.platform.jobs.check.raycluster import cluster_spec

STRATEGIES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+|\d+")
INCREMENTAL = "upgradeStrategy.clusterUpgradeOptions"


def rayservice(document: Document) -> Findings:
    spec = table(document.value.get("spec"))
    cluster = table(spec.get("rayClusterConfig"))
    timeout = table(dig(document.value, "metadata.annotations")).get("ray.io/initializing-timeout")
    if timeout is not None and not (DURATION.fullmatch(str(timeout)) and re.search("[1-9]", str(timeout))):
        path = "metadata.annotations[ray.io/initializing-timeout]"
        yield Finding(path, "S2", f"{timeout!r} is no positive duration", 'write e.g. "30m"')
    if dig(cluster, "authOptions.enableK8sTokenAuth") is True:
        yield Finding(
            "spec.rayClusterConfig.authOptions.enableK8sTokenAuth",
            "S1",
            "not for RayServices",
            "leave it out",
        )
    if dig(cluster, "headGroupSpec.headService.metadata.name"):
        path = "spec.rayClusterConfig.headGroupSpec.headService.metadata.name"
        yield Finding(path, "S3", "the operator names this service", "leave it out")
    kind = dig(spec, "upgradeStrategy.type")
    if kind not in (None, *STRATEGIES):
        yield Finding("spec.upgradeStrategy.type", "S4", f"got {kind!r}", f"valid: {', '.join(STRATEGIES)}")
    if (number(spec.get("rayClusterDeletionDelaySeconds")) or 0) < 0:
        yield Finding("spec.rayClusterDeletionDelaySeconds", "S5", "is negative", "write 0 or more")
    if kind == "NewClusterWithIncrementalUpgrade":
        yield from _incremental(spec)
    for key in ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"):
        if key in spec:
            cure = "use the annotation ray.io/initializing-timeout"
            yield Finding(f"spec.{key}", "X12", "the operator no longer reads it", cure)
    yield from _serve_config(spec.get("serveConfigV2"))
    yield from cluster_spec(cluster, "spec.rayClusterConfig")


def _incremental(spec: dict) -> Findings:
    options = table(dig(spec, INCREMENTAL))
    wrong = [] if dig(spec, "rayClusterConfig.enableInTreeAutoscaling") is True else ["autoscaling is off"]
    wrong += [] if options else ["clusterUpgradeOptions are not there"]
    surge, step = number(options.get("maxSurgePercent", 100)), number(options.get("stepSizePercent", 0))
    wrong += (
        []
        if surge is not None and step is not None and 0 <= step <= surge <= 100
        else ["not step <= surge <= 100"]
    )
    wrong += (
        [] if (number(options.get("intervalSeconds", 1)) or 0) > 0 else ["intervalSeconds is not positive"]
    )
    wrong += [] if options.get("gatewayClassName") else ["gatewayClassName is empty"]
    if wrong:
        yield Finding(
            f"spec.{INCREMENTAL}", "S6", ", ".join(wrong), "use NewCluster, or write what is missing"
        )


def _serve_config(text: object) -> Findings:
    """X13: a string that nobody looks into before the cluster runs."""
    path, cure = "spec.serveConfigV2", "write applications: [{name, import_path, route_prefix}] as a string"
    try:
        config = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError as error:
        yield Finding(path, "X13", f"is not YAML: {str(error).splitlines()[0]}", cure)
        return
    applications = rows(table(config).get("applications"))
    if not applications or any(":" not in str(each.get("import_path")) for each in applications):
        yield Finding(path, "X13", "no application with an import_path of the form module:name", cure)
    for key in ("name", "route_prefix"):
        values = [str(each.get(key, "")) for each in applications]
        if len(set(values)) != len(values):
            yield Finding(path, "X13", f"two applications have the same {key}", cure)
