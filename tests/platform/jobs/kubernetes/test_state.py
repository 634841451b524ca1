"""How a RayJob stands, by the operator's own words."""

from typing import Any

import pytest

from vergence.platform.jobs.kubernetes.state import status, waits_for


def rayjob(deployment: str = "", job: str = "", suspend: bool = False, **more: Any) -> dict[str, Any]:
    metadata = {"name": "moco", "uid": "u1", "labels": {"vergence/name": "moco", "vergence/verb": "pretrain"}}
    found = {"jobDeploymentStatus": deployment, "jobStatus": job, **more} if deployment or more else {}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": found}


@pytest.mark.parametrize(
    ("deployment", "job", "state"),
    [
        ("", "", "pending"),
        ("Initializing", "", "pending"),
        ("Running", "", "pending"),
        ("Running", "PENDING", "pending"),
        ("Running", "RUNNING", "running"),
        ("Running", "FAILED", "pending"),  # a retry may follow
        ("Running", "SUCCEEDED", "pending"),  # the operator has not looked
        ("Retrying", "FAILED", "pending"),
        ("Suspended", "", "pending"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Complete", "STOPPED", "stopped"),
        ("Complete", "FAILED", "failed"),
        ("Failed", "RUNNING", "failed"),
        ("ValidationFailed", "", "failed"),
    ],
)
def test_state(deployment: str, job: str, state: str) -> None:
    assert status(rayjob(deployment, job)).state == state


def test_refusal_of_the_operator_is_the_reason() -> None:
    found = status(
        rayjob("ValidationFailed", reason="ValidationFailed", message="rayjob cannot be suspended")
    )
    assert found.reason == "ValidationFailed: the operator refuses it (rayjob cannot be suspended)"


def test_job_that_nobody_sees_asks_for_the_operator() -> None:
    assert "does it run?" in waits_for(rayjob(), [], [])


def test_suspended_job_without_a_workload_says_so() -> None:
    assert waits_for(rayjob(suspend=True), [], []) == "it is suspended, and Kueue has no workload of it yet"


def test_workload_of_another_job_is_not_ours() -> None:
    condition = {"type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota", "message": "m"}
    other = {"metadata": {"ownerReferences": [{"uid": "u2"}]}, "status": {"conditions": [condition]}}
    assert waits_for(rayjob(suspend=True), [other], []) == "it is suspended"
    other["metadata"]["ownerReferences"] = [{"uid": "u1"}]
    assert waits_for(rayjob(suspend=True), [other], []).startswith(
        "Kueue: QuotaReserved=False, WaitingForQuota"
    )


def test_newest_warning_is_told() -> None:
    events = [
        {"type": "Warning", "reason": "Old", "message": "a", "lastTimestamp": "2026-11-26T05:00:00Z"},
        {"type": "Warning", "reason": "New", "message": "b", "lastTimestamp": "2026-11-26T05:00:01Z"},
        {"type": "Normal", "reason": "Made", "message": "c", "lastTimestamp": "2026-11-26T05:00:02Z"},
    ]
    assert waits_for(rayjob("Initializing"), [], events) == "New: b"
