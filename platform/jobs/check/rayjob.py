"""RayJob: what KubeRay's operator refuses after the API server has said yes (J*), and what it lets pass (X*).

KubeRay v1.7.0, ray-operator/controllers/ray/utils/validation.go; the operator stops at its first rule, we name them all.
"""

import itertools
import re
from typing import Any

import yaml

from vergence.platform.jobs.check.finding import Document, Finding, Findings, dig, number, rows, table
from vergence.platform.jobs.check.raycluster import cluster_spec

MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
LONGEST = {"RayJob": 47, "RayService": 47, "RayCluster": 53, "RayCronJob": 36}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SELECTOR = "ray.io/cluster"
ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def name(document: Document) -> Findings:
    """J1, J2: of every kind of Ray."""
    longest = LONGEST[document.kind]
    if len(document.name) > longest:
        message = f"{len(document.name)} characters, KubeRay takes {longest}"
        yield Finding("metadata.name", "J1", message, "shorten it")
    if document.kind != "RayCronJob" and not DNS_1035.fullmatch(document.name):
        cure = "write small letters, digits and -, a letter first"
        yield Finding("metadata.name", "J2", f"{document.name!r} is no DNS-1035 label", cure)


def rayjob(document: Document) -> Findings:
    spec = table(document.value.get("spec"))
    yield from job_spec(spec, "spec")


def raycronjob(document: Document) -> Findings:
    """R1, and the rules of the job that it makes."""
    spec = table(document.value.get("spec"))
    schedule = str(spec.get("schedule", ""))
    if "TZ" in schedule or len(schedule.split()) != 5 or re.search(r"[^\w*/,\- ?]", schedule):
        cure = 'write five fields, e.g. "0 3 * * *", and the zone in timeZone'
        yield Finding("spec.schedule", "R1", f"{schedule!r} is no cron schedule of five fields", cure)
    if "timeZone" in spec:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(str(spec["timeZone"]))
        except (ZoneInfoNotFoundError, ValueError):
            yield Finding(
                "spec.timeZone", "R1", f"{spec['timeZone']!r} is no time zone", "write one, e.g. Europe/Paris"
            )
    yield from job_spec(table(spec.get("jobTemplate")), "spec.jobTemplate")


def job_spec(spec: dict[str, Any], root: str) -> Findings:
    """All rules of a RayJob's spec that stands at the path `root`."""
    for rules in (_entrypoint, _lifetime, _cluster_choice, _sidecar, _deletion):
        for path, rule, message, cure in rules(spec):
            yield Finding(f"{root}.{path}", rule, message, cure)
    if "rayClusterSpec" in spec:
        yield from cluster_spec(table(spec["rayClusterSpec"]), f"{root}.rayClusterSpec")


def _entrypoint(spec: dict[str, Any]) -> Findings:
    entrypoint, mode = str(spec.get("entrypoint", "")), spec.get("submissionMode", "K8sJobMode")
    if not entrypoint.strip() and mode != "InteractiveMode":
        yield Finding(
            "entrypoint", "X1", "empty, and in HTTPMode that even succeeds", "write the command of the job"
        )
    if mode not in MODES:
        message = f"got {mode!r}, which the operator takes and then waits for ever"
        yield Finding("submissionMode", "X2", message, f"valid: {', '.join(MODES)}")
    if mode != "HTTPMode" and (found := shell_words(entrypoint)):  # there the job's own shell reads it first
        message = f"{found!r} is read by the shell of the submitter, not of the job"
        yield Finding(
            "entrypoint", "X9", message, "write one plain command, or bash -c '...' in single quotes"
        )
    text = spec.get("runtimeEnvYAML")
    if isinstance(text, str):
        try:
            parsed = yaml.safe_load(text)
            wrong = None if isinstance(parsed, dict) or parsed is None else f"is a {type(parsed).__name__}"
        except yaml.YAMLError as error:
            wrong = f"is not YAML: {str(error).splitlines()[0]}"
        if wrong:
            yield Finding("runtimeEnvYAML", "J30", wrong, "write a mapping as a string: runtimeEnvYAML: |")


def shell_words(command: str) -> str | None:
    """The first piece of a command that a shell would act on; None for a plain command."""
    for quoted, plain in re.findall(r"('[^']*')|([^'])", command):
        if not quoted and plain in "|&;<>()$`\\\"*?[#~\n'{}!":
            return plain
    return None


def _lifetime(spec: dict[str, Any]) -> Findings:
    ends = spec.get("shutdownAfterJobFinishes") is True
    ttl, retries = number(spec.get("ttlSecondsAfterFinished")), number(spec.get("backoffLimit"))
    if spec.get("suspend") is True and not ends:
        yield Finding("suspend", "J3", "needs shutdownAfterJobFinishes", "set shutdownAfterJobFinishes: true")
    if ttl is not None and ttl < 0:
        yield Finding("ttlSecondsAfterFinished", "J4", f"got {ttl}", "write 0 or more")
    if ttl is not None and ttl > 0 and not ends:
        cure = "set shutdownAfterJobFinishes: true, or leave the TTL out"
        yield Finding("ttlSecondsAfterFinished", "J5", "a TTL without shutdownAfterJobFinishes", cure)
    if retries is not None and retries < 0:
        yield Finding("backoffLimit", "J32", f"got {retries}", "write 0 or more")
    if retries and retries > 0 and spec.get("submissionMode") == "InteractiveMode":
        yield Finding("backoffLimit", "J25", "InteractiveMode has no retries", "set backoffLimit: 0")
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        seconds = number(spec.get(key))
        if seconds is not None and seconds <= 0:
            yield Finding(key, "J31", f"got {seconds}", "write a positive number of seconds, or leave it out")
    if dig(spec, "rayClusterSpec.authOptions.enableK8sTokenAuth") is True:
        path = "rayClusterSpec.authOptions.enableK8sTokenAuth"
        yield Finding(path, "J29", "not for RayJobs", "leave it out; mode: token stands alone")


def _cluster_choice(spec: dict[str, Any]) -> Findings:
    selector = spec.get("clusterSelector")
    if not selector:
        if "rayClusterSpec" not in spec:
            yield Finding(
                "rayClusterSpec", "J21", "neither it nor clusterSelector is there", "write rayClusterSpec"
            )
        return
    if not table(selector).get(SELECTOR):
        yield Finding(
            "clusterSelector", "J22", f"has no {SELECTOR}", f'write {SELECTOR}: "the name of a RayCluster"'
        )
    if "rayClusterSpec" in spec:
        message = "stands beside rayClusterSpec, which is then ignored without a word"
        yield Finding("clusterSelector", "X4", message, "leave one of the two out")
    if spec.get("suspend") is True:
        yield Finding("suspend", "J20", "not with clusterSelector", "leave one of the two out")
    if spec.get("submissionMode") == "SidecarMode":
        yield Finding("submissionMode", "J23", "SidecarMode has no clusterSelector", "use HTTPMode")
    if (number(spec.get("backoffLimit")) or 0) > 0:
        message = "a retry makes a new cluster, clusterSelector names an old one"
        yield Finding("backoffLimit", "J24", message, "set backoffLimit: 0, or write rayClusterSpec")


def _sidecar(spec: dict[str, Any]) -> Findings:
    if spec.get("submissionMode") != "SidecarMode":
        return
    for key, rule in ("submitterPodTemplate", "J26"), ("submitterConfig", "J27"):
        if key in spec:
            yield Finding(key, rule, "SidecarMode has no submitter pod", "leave it out")
    path = "rayClusterSpec.headGroupSpec.template.spec.restartPolicy"
    if dig(spec, path) not in (None, "Never"):
        yield Finding(
            path, "J28", f"got {dig(spec, path)}; SidecarMode needs Never", "write Never, or leave it out"
        )


def _deletion(spec: dict[str, Any]) -> Findings:
    """J7 to J19. (J6 is about a gate that is open by default.)"""
    if "deletionStrategy" not in spec:
        return
    strategy = table(spec["deletionStrategy"])
    rules, legacy = (
        rows(strategy.get("deletionRules")),
        [k for k in ("onSuccess", "onFailure") if k in strategy],
    )
    ends, scales = (
        spec.get("shutdownAfterJobFinishes") is True,
        dig(spec, "rayClusterSpec.enableInTreeAutoscaling") is True,
    )
    place = "deletionStrategy.deletionRules"
    if rules and ends:
        yield Finding(place, "J7", "excludes shutdownAfterJobFinishes", "leave one of the two out")
    if rules and legacy:
        yield Finding(
            "deletionStrategy", "J8", f"deletionRules beside {legacy[0]}", "write deletionRules alone"
        )
    if not rules and not legacy:
        yield Finding("deletionStrategy", "J9", "is empty", "write deletionRules, or leave it out")
    if len(legacy) == 1 or any("policy" not in table(strategy[key]) for key in legacy):
        yield Finding(
            "deletionStrategy",
            "J10",
            "onSuccess and onFailure need a policy each",
            "write deletionRules instead",
        )
    for key in legacy:
        policy = table(strategy[key]).get("policy")
        yield from _policy(
            policy, f"deletionStrategy.{key}.policy", "J11", "J12", "clusterSelector" in spec, scales
        )
        if policy == "DeleteNone" and ends:
            yield Finding(
                f"deletionStrategy.{key}.policy",
                "J13",
                "DeleteNone, and shutdownAfterJobFinishes",
                "choose one",
            )
    for i, rule in enumerate(rules):
        condition = table(rule.get("condition"))
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            cure = "write exactly one of jobStatus and jobDeploymentStatus"
            yield Finding(f"{place}[{i}].condition", "J14", f"got {', '.join(condition) or 'nothing'}", cure)
        if (number(condition.get("ttlSeconds")) or 0) < 0:
            yield Finding(f"{place}[{i}].condition.ttlSeconds", "J15", "is negative", "write 0 or more")
        yield from _policy(
            rule.get("policy"), f"{place}[{i}].policy", "J16", "J17", "clusterSelector" in spec, scales
        )
    yield from _order(rules, place)


def _policy(
    policy: Any, path: str, selector_rule: str, scale_rule: str, selected: bool, scales: bool
) -> Findings:
    if policy in ("DeleteCluster", "DeleteWorkers") and selected:
        yield Finding(
            path, selector_rule, f"{policy} with clusterSelector", "a cluster of others is not deleted"
        )
    if policy == "DeleteWorkers" and scales:
        yield Finding(path, scale_rule, "DeleteWorkers with autoscaling", "use DeleteCluster")


def _order(rules: list[dict[str, Any]], place: str) -> Findings:
    """J18, J19: each (policy, status) once; workers go before the cluster, the cluster before the job."""
    waits: dict[str, dict[str, int]] = {}
    for i, rule in enumerate(rules):
        condition, policy = table(rule.get("condition")), str(rule.get("policy"))
        status = str(condition.get("jobStatus", condition.get("jobDeploymentStatus")))
        if policy in waits.setdefault(status, {}):
            yield Finding(f"{place}[{i}]", "J18", f"{policy} for {status} stands twice", "leave one out")
        waits[status][policy] = number(condition.get("ttlSeconds")) or 0
    for status, by_policy in waits.items():
        for first, later in itertools.pairwise([policy for policy in ORDER if policy in by_policy]):
            if by_policy[first] > by_policy[later]:
                message = f"{status}: {first} after {by_policy[first]} s, {later} after {by_policy[later]} s"
                yield Finding(
                    place, "J19", message, "TTLs must not fall from workers to cluster to the job itself"
                )
