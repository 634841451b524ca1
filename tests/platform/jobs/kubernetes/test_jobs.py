"""Jobs on Kubernetes, against an API server that is a double, over HTTP, with the official client."""

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from kube_api import KubeApi, Refusal
from kube_jobs import PROFILE, Followed, job, runs

from vergence.platform.cluster import waiting
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.jobs.kubernetes.jobs import KubernetesJobs


def test_job_is_created_and_followed_to_success(api: KubeApi, target: KubernetesJobs) -> None:
    assert target.submit(job()).state == "pending"
    followed = Followed(target)
    runs(api)
    for i in range(3):
        api.print(f"step {i}")
    followed.wait_for(lambda: len(followed.lines) == 3)
    api.say("moco", jobStatus="SUCCEEDED")  # no end yet: the operator has not looked
    api.print("registered")
    api.end_pod("submit-1")
    api.say("moco", jobDeploymentStatus="Complete", endTime="2026-11-26T06:00:00Z")
    assert followed.end().lines == ["step 0\n", "step 1\n", "step 2\n", "registered\n"]
    status = target.status("moco")
    assert (status.state, status.code, status.verb) == ("succeeded", 0, "pretrain")
    assert status.ended_s is not None
    assert status.begun_s is not None
    assert status.ended_s - status.begun_s == 3600
    assert followed.error is None


def test_second_submit_is_the_same_job(api: KubeApi, target: KubernetesJobs) -> None:
    first = target.submit(job())
    runs(api)
    again = target.submit(job())
    assert (again.id, again.state) == (first.id, "running")
    assert len([each for each in api.objects if each[0] == "rayjobs"]) == 1
    assert "DELETE rayjobs" not in api.requests


def test_job_is_followed_to_failure_through_a_retry(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    followed = Followed(target)
    runs(api)
    api.print("first attempt")
    api.end_pod("submit-1", "Failed")
    api.say("moco", jobStatus="FAILED")  # alone it is no end
    api.say("moco", jobDeploymentStatus="Retrying", failed=1)
    followed.wait_for(lambda: followed.lines)
    api.say("moco", jobDeploymentStatus="Running", jobStatus="RUNNING")
    api.run_submitter("moco", "submit-2")
    api.print("second attempt", "submit-2")
    followed.wait_for(lambda: len(followed.lines) == 2)
    assert followed.thread.is_alive()
    api.end_pod("submit-2", "Failed")
    message = "Job entrypoint command failed with exit code 3, last available logs:\nvergence: no space left"
    api.say("moco", jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message=message)
    assert followed.end().lines == ["first attempt\n", "second attempt\n"]
    status = target.status("moco")
    assert (status.state, status.code) == ("failed", 3)
    assert status.reason == "AppFailed: its command failed (vergence: no space left)"


def test_job_is_followed_to_its_deadline(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    followed = Followed(target)
    runs(api)
    api.say(
        "moco", jobDeploymentStatus="Failed", reason="DeadlineExceeded", message="The RayJob has passed 60 s."
    )
    api.end_pod("submit-1", "Failed")
    followed.end()
    status = target.status("moco")
    assert (status.state, status.code) == ("failed", 1)
    assert "limits.deadline_s" in status.reason


def test_job_that_somebody_stopped_is_no_success(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    api.say("moco", jobDeploymentStatus="Complete", jobStatus="STOPPED")
    assert Followed(target).end().error is None
    assert (target.status("moco").state, target.status("moco").code) == ("stopped", 143)


def test_live_namesake_with_another_specification_is_refused(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    with pytest.raises(
        UserError, match=r"another specification \(spec.rayClusterSpec.*workerGroupSpecs\[0\].replicas"
    ):
        target.submit(job(workers=3))
    assert "DELETE rayjobs" not in api.requests


def test_rayjob_of_somebody_else_is_never_touched(api: KubeApi, target: KubernetesJobs) -> None:
    api.add("rayjobs", "moco", spec={}, status={"jobDeploymentStatus": "Complete"})
    with pytest.raises(UserError, match="Vergence has not made"):
        target.submit(job())
    assert "DELETE rayjobs" not in api.requests


def test_ended_job_is_made_anew_and_may_be_another(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    uid = api.objects["rayjobs", "moco"]["metadata"]["uid"]
    api.say("moco", jobDeploymentStatus="Failed", reason="AppFailed")
    assert target.submit(job(workers=3)).state == "pending"
    there = api.objects["rayjobs", "moco"]
    assert there["metadata"]["uid"] != uid
    assert there["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3


def test_pending_job_says_what_it_waits_for(
    api: KubeApi, target: KubernetesJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_S", 0.0)
    target.submit(job())
    owner = {"uid": api.objects["rayjobs", "moco"]["metadata"]["uid"]}
    full = {
        "type": "QuotaReserved",
        "status": "False",
        "reason": "WaitingForQuota",
        "message": "insufficient GPUs",
    }
    api.add("workloads", "rayjob-moco", metadata={"ownerReferences": [owner]}, status={"conditions": [full]})
    assert target.status("moco").reason == "Kueue: QuotaReserved=False, WaitingForQuota: insufficient GPUs"
    followed = Followed(target)
    followed.wait_for(lambda: followed.remarks)
    assert "moco is pending: Kueue: QuotaReserved=False, WaitingForQuota" in followed.remarks[0]
    api.say("moco", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    followed.end()


def test_reasons_are_read_from_what_we_may_see(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    api.say("moco", jobDeploymentStatus="Initializing", rayClusterName="moco-x1")
    for path in ("GET workloads", "GET events"):
        api.refused[path] = Refusal(403, "Forbidden", "no")
    assert target.status("moco").reason == "the operator makes its pods"
    api.refused.clear()
    about = {"involvedObject": {"name": "moco-x1"}, "type": "Warning"}
    api.add("events", "e1", **about, reason="FailedToCreateHeadPod", message="violates PodSecurity")
    api.add("events", "e2", involvedObject={"name": "other"}, type="Warning", reason="No", message="other")
    assert target.status("moco").reason == "FailedToCreateHeadPod: violates PodSecurity"


def test_stop_waits_for_the_commit_and_the_same_submit_goes_on(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    runs(api)
    api.add("pods", "moco-head", metadata={"labels": {"vergence/name": "moco"}}, status={"phase": "Running"})
    stopped: list[object] = []
    thread = threading.Thread(target=lambda: stopped.append(target.stop("moco", says=print)))
    thread.start()
    api.wait_for(lambda: ("rayjobs", "moco") not in api.objects)
    time.sleep(0.2)
    assert stopped == [], "the head's pod still commits"
    api.remove("pods", "moco-head")
    thread.join(10)
    (status,) = stopped
    assert (status.state, status.code) == ("stopped", 143)  # type: ignore[attr-defined]
    assert target.submit(job()).state == "pending"


def test_stop_gives_up_on_pods_that_stay(api: KubeApi) -> None:
    profile = PROFILE.model_copy(update={"limits": PROFILE.limits.model_copy(update={"grace_s": -60})})
    target = KubernetesJobs(profile, look_s=0.01)
    target.submit(job())
    api.lingers = True
    with pytest.raises(VergenceError, match="still there"):
        target.stop("moco", says=print)


def test_unknown_job_names_the_nearest(api: KubeApi, target: KubernetesJobs) -> None:
    with pytest.raises(UserError, match="it has none"):
        target.status("mocco")
    target.submit(job())
    with pytest.raises(UserError, match="did you mean moco"):
        target.status("mocco")


def test_jobs_are_listed_oldest_first_without_those_of_others(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job("second"))
    target.submit(job("first"))
    api.objects["rayjobs", "first"]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    api.add("rayjobs", "theirs", spec={})
    assert [status.name for status in target.jobs()] == ["first", "second"]


def test_log_of_a_job_that_runs_can_be_read_without_following(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    assert list(target.logs("moco", follow=False, says=print)) == []
    runs(api)
    api.print("one")
    assert list(target.logs("moco", follow=False, says=print)) == ["one\n"]


def test_kubectl_and_we_speak_of_the_same_object(
    api: KubeApi, target: KubernetesJobs, tmp_path: Path
) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")

    def kubectl(*words: str, text: str = "") -> str:
        command = [
            "kubectl",
            "--kubeconfig",
            str(tmp_path / "kubeconfig"),
            "--cache-dir",
            str(tmp_path / "cache"),
            *words,
        ]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

    manifest = target.preview(job())
    assert kubectl("create", "--validate=false", "-f", "-", text=manifest) == "rayjob.ray.io/moco created\n"
    assert target.submit(job()).state == "pending"  # the same: nothing is made
    runs(api)
    api.print("hello")
    api.end_pod("submit-1")
    assert json.loads(kubectl("get", "rayjob", "moco", "-o", "json"))["status"]["jobStatus"] == "RUNNING"
    assert kubectl("get", "rj", "-l", "vergence/name", "-o", "name") == "rayjob.ray.io/moco\n"
    assert kubectl("logs", "submit-1") == "hello\n"
    assert kubectl("delete", "rayjob", "moco", "--wait=false") == 'rayjob.ray.io "moco" deleted\n'
    with pytest.raises(UserError, match="no job"):
        target.status("moco")
