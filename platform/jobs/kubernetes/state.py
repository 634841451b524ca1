"""How a RayJob stands, read from what the operator writes of it; pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from vergence.platform.jobs.kubernetes.render import NAME, VERB
from vergence.platform.jobs.target import JobState, JobStatus

# where the operator stops for good; jobStatus FAILED alone is no end, a retry may follow
OVER = ("Complete", "Failed", "ValidationFailed")
WORDS = {
    "DeadlineExceeded": "it took longer than limits.deadline_s of the profile",
    "PreRunningDeadlineExceeded": "its pods did not start within limits.starting_s of the profile",
    "SubmissionFailed": "its command could not be handed to Ray",
    "AppFailed": "its command failed",
    "JobStatusCheckTimeoutExceeded": "the operator lost sight of Ray's head (a network policy, or the head died)",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "Ray says it is over, the operator never saw it end",
    "ValidationFailed": "the operator refuses it",
}


def status(rayjob: Mapping[str, Any], reason: str = "") -> JobStatus:
    """Of a RayJob as the server has it. reason: what a pending one waits for."""
    found = rayjob.get("status") or {}
    state = _state(found)
    code = re.search(r"exit code (\d+)", str(found.get("message") or "")) if state == "failed" else None
    labels = rayjob["metadata"].get("labels") or {}
    return JobStatus(
        labels.get(NAME, rayjob["metadata"]["name"]),
        rayjob["metadata"]["name"],
        labels.get(VERB, ""),
        state,
        _failure(found) if state == "failed" else reason if state == "pending" else "",
        int(code[1]) if code else None,
        _seconds(found.get("startTime")),
        _seconds(found.get("endTime")) if state not in ("pending", "running") else None,
    )


def _state(found: Mapping[str, Any]) -> JobState:
    deployment, job = found.get("jobDeploymentStatus") or "", found.get("jobStatus") or ""
    if deployment in OVER:
        if deployment == "Complete" and job == "SUCCEEDED":
            return "succeeded"
        return "stopped" if deployment == "Complete" and job == "STOPPED" else "failed"
    return "running" if deployment == "Running" and job == "RUNNING" else "pending"


def _failure(found: Mapping[str, Any]) -> str:
    """Why it failed: the operator's reason in words, and the last line of what it or the command has said."""
    reason = str(found.get("reason") or found.get("jobDeploymentStatus"))
    lines = [line.strip() for line in str(found.get("message") or "").splitlines() if line.strip()]
    said = f" ({lines[-1]})" if lines else ""
    return f"{reason}: {WORDS.get(reason, 'no more is known')}{said}"


def _seconds(moment: Any) -> float | None:
    return datetime.fromisoformat(str(moment)).timestamp() if moment else None


def waits_for(
    rayjob: Mapping[str, Any], workloads: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> str:
    """What a RayJob that does not run yet waits for.

    workloads: Kueue's, of the namespace; events: of the namespace, of this job and its cluster.
    """
    found = rayjob.get("status") or {}
    deployment = found.get("jobDeploymentStatus") or ""
    uid = rayjob["metadata"]["uid"]
    for workload in workloads:
        owners = workload["metadata"].get("ownerReferences") or []
        if any(owner.get("uid") == uid for owner in owners):
            for condition in (workload.get("status") or {}).get("conditions") or []:
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    return (
                        f"Kueue: QuotaReserved=False, {condition.get('reason')}: {condition.get('message')}"
                    )
    if deployment in ("Suspended", "Suspending") or (rayjob["spec"].get("suspend") and not deployment):
        return "it is suspended" + (", and Kueue has no workload of it yet" if not workloads else "")
    warnings = [event for event in events if event.get("type") == "Warning"]
    if warnings:
        newest = max(
            warnings, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or "")
        )
        return f"{newest.get('reason')}: {newest.get('message')}"
    for condition in (found.get("rayClusterStatus") or {}).get("conditions") or []:
        if condition.get("status") == "False" and condition.get("type") == "HeadPodReady":
            return f"Ray's head is not ready: {condition.get('message') or condition.get('reason')}"
    if deployment == "Retrying":
        return f"a new attempt after a failure ({found.get('failed', 0)} so far)"
    if deployment == "Running":
        return "its command is handed to Ray"
    return "the operator makes its pods" if deployment else "the operator has not seen it yet (does it run?)"
