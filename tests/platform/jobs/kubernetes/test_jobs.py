"""Jobs on Kubernetes, against an API server that is a double, over HTTP, with the official client."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube_api import KubeApi, Refusal, kube_api

from vergence.platform.cluster import waiting
from vergence.platform.cluster.capacity import Need, ScaleConfig
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.kubernetes.jobs import KubernetesJobs
from vergence.platform.jobs.kubernetes.profile import Profile

PROFILE = Profile.model_validate_json(
    json.dumps(
        {
            "image": "registry/vergence:0.1.0-ray2.60.0",
            "namespace": "team",
            "storage": {"claim": "runs", "path": "/runs"},
            "limits": {"grace_s": 5},
        }
    )
)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    with kube_api() as double:
        monkeypatch.setenv("KUBECONFIG", str(double.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
        )
        yield double


@pytest.fixture
def target(api: KubeApi) -> KubernetesJobs:
    return KubernetesJobs(PROFILE, patience_s=20, look_s=0.01)


def job(name: str = "moco", workers: int = 2) -> Job:
    recipe = {"recipe.yaml": f"scale: {{workers: {workers}}}\n"}
    need = Need(ScaleConfig(workers=workers), workers, 0.5)
    return Job(name, "pretrain", ["recipe.yaml", "--name", name], recipe, None, need)


class Followed:
    """A job that is followed on another thread."""

    def __init__(self, target: KubernetesJobs, name: str = "moco") -> None:
        self.lines: list[str] = []
        self.remarks: list[str] = []
        self.error: Exception | None = None
        self.target, self.name = target, name
        self.thread = threading.Thread(target=self._follow)
        self.thread.start()

    def _follow(self) -> None:
        try:
            for line in self.target.logs(self.name, follow=True, says=self.remarks.append):
                self.lines.append(line)
        except Exception as error:
            self.error = error

    def end(self, most_s: float = 15.0) -> "Followed":
        self.thread.join(most_s)
        assert not self.thread.is_alive(), "it follows for ever"
        return self

    def wait_for(self, holds: Callable[[], object], most_s: float = 10.0) -> None:
        until = time.monotonic() + most_s
        while not holds():
            assert time.monotonic() < until, (self.lines, self.remarks, self.error)
            time.sleep(0.01)


def runs(api: KubeApi) -> None:
    """As the operator does: from made to running."""
    api.say("moco", jobDeploymentStatus="Initializing", startTime="2026-11-26T05:00:00Z")
    api.run_submitter("moco")
    api.say("moco", jobDeploymentStatus="Running", jobStatus="RUNNING")


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


def test_missing_right_is_one_line(api: KubeApi, target: KubernetesJobs) -> None:
    message = 'rayjobs.ray.io is forbidden: User "me" cannot create resource "rayjobs"'
    api.refused["POST rayjobs"] = Refusal(403, "Forbidden", message)
    with pytest.raises(UserError, match=r"namespace team: not allowed: .*me.*submitter.yaml") as caught:
        target.submit(job())
    assert "\n" not in str(caught.value)


def test_cluster_without_kuberay_is_told_from_a_missing_namespace(
    api: KubeApi, target: KubernetesJobs
) -> None:
    api.refused["POST rayjobs"] = Refusal(404, "NotFound", 'namespaces "team" not found')
    with pytest.raises(UserError, match='namespaces "team" not found'):
        target.submit(job())
    api.without.add("rayjobs")
    with pytest.raises(UserError, match="install KubeRay"):
        target.submit(job())


def test_what_the_server_refuses_is_said(api: KubeApi, target: KubernetesJobs) -> None:
    api.refused["POST rayjobs"] = Refusal(
        422, "Invalid", "admission webhook denied: shutdownAfterJobFinishes"
    )
    with pytest.raises(UserError, match="refused: admission webhook denied"):
        target.submit(job())


def test_watch_that_has_expired_is_begun_anew(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    api.expired = 3
    followed = Followed(target)
    followed.wait_for(lambda: api.expired == 0)
    api.say("moco", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert followed.end().error is None
    assert followed.remarks == []


@pytest.mark.parametrize("printing", [True, False])
def test_server_that_is_gone_for_a_while_is_waited_for(
    api: KubeApi, target: KubernetesJobs, printing: bool
) -> None:
    target.submit(job())
    followed = Followed(target)
    if printing:
        runs(api)
        api.print("before")
        followed.wait_for(lambda: followed.lines)
    api.stop()
    followed.wait_for(lambda: followed.remarks)
    if printing:
        api.print("meanwhile")
    time.sleep(0.3)
    api.start()
    if printing:
        api.print("after")
        api.end_pod("submit-1")
    api.say("moco", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert followed.end().error is None
    assert followed.lines == (["before\n", "meanwhile\n", "after\n"] if printing else [])
    assert "does not answer" in followed.remarks[0]
    assert followed.remarks[1:] == ["the server answers again"]


def test_server_that_stays_away_is_given_up(api: KubeApi) -> None:
    target = KubernetesJobs(PROFILE, patience_s=0.2, look_s=0.01)
    target.submit(job())
    followed = Followed(target)
    api.wait_for(lambda: len(api.requests) > 2)
    api.stop()
    error = followed.end().error
    assert isinstance(error, VergenceError)
    assert not isinstance(error, UserError)
    assert "does not answer" in str(error)


def test_job_that_is_deleted_while_it_is_followed_has_no_known_end(
    api: KubeApi, target: KubernetesJobs
) -> None:
    target.submit(job())
    followed = Followed(target)
    runs(api)
    api.wait_for(lambda: "GET pods/log" in api.requests)
    api.end_pod("submit-1", "Failed")
    api.remove("rayjobs", "moco")
    assert "how it ended is not known" in str(followed.end().error)


def test_namesake_that_takes_its_place_is_not_followed(api: KubeApi, target: KubernetesJobs) -> None:
    target.submit(job())
    followed = Followed(target)
    api.wait_for(lambda: len(api.requests) > 3)
    with api.changed:
        spec = api.objects["rayjobs", "moco"]["spec"]
        api.remove("rayjobs", "moco")
        api.add(
            "rayjobs", "moco", spec=spec, status={"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
        )
    assert "how it ended is not known" in str(followed.end().error)


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


def test_without_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no Kubernetes cluster is configured"):
        KubernetesJobs(PROFILE).jobs()
    assert KubernetesJobs(PROFILE).preview(job()).startswith("apiVersion: ray.io/v1\nkind: RayJob\n")


def test_without_the_client_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(UserError, match=re.escape("pip install 'vergence[k8s]'")):
        KubernetesJobs(PROFILE).jobs()


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
