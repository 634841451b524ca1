"""Jobs on Kubernetes when the cluster refuses, is away, or somebody else touches them."""

import re
import sys
import time
from pathlib import Path

import pytest
from kube_api import KubeApi, Refusal
from kube_jobs import PROFILE, Followed, job, runs

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.jobs.kubernetes.jobs import KubernetesJobs


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


def test_without_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no Kubernetes cluster is configured"):
        KubernetesJobs(PROFILE).jobs()
    assert KubernetesJobs(PROFILE).preview(job()).startswith("apiVersion: ray.io/v1\nkind: RayJob\n")


def test_without_the_client_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(UserError, match=re.escape("pip install 'vergence[k8s]'")):
        KubernetesJobs(PROFILE).jobs()
