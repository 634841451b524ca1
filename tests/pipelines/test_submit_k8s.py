"""`vergence submit` and `vergence jobs` with `--to k8s`: what is printed, and exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kube_api import KubeApi, kube_api

from vergence.pipelines.cli import main

PROFILE = """
image: registry/vergence:0.1.0-ray2.60.0
namespace: team
storage: {claim: runs, path: /runs}
limits: {grace_s: 5}
"""
ROLE = Path(__file__).parents[2] / "k8s" / "base" / "submitter.yaml"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    with kube_api() as double:
        config = double.kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
        yield double


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    profile = tmp_path / "cluster.yaml"
    profile.write_text(PROFILE)
    return ["--to", "k8s", "--profile", str(profile)]


SUBMIT = [
    "submit",
    "pretrain",
    "digits",
    "--name",
    "first",
    "data.train=/data/train-*.tar",
    "scale.workers=3",
]


def test_job_is_submitted_and_followed_and_its_code_is_ours(
    api: KubeApi, place: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUBMIT, *place, "--detach"]) == 0
    assert capsys.readouterr().out == "first\n"
    api.run_submitter("first")
    api.say("first", jobDeploymentStatus="Running", jobStatus="RUNNING")
    api.print("step 1/10")
    api.end_pod("submit-1", "Failed")
    message = "Job entrypoint command failed with exit code 2, last available logs:\nvergence: data.train: no shards"
    api.say("first", jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message=message)
    assert main(["jobs", "logs", "-f", "first", *place]) == 2
    said = capsys.readouterr()
    assert said.out == "step 1/10\n"
    assert said.err == "job first failed: AppFailed: its command failed (vergence: data.train: no shards)\n"
    _within_its_role(api)


def test_jobs_are_listed_shown_and_stopped(
    api: KubeApi, place: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUBMIT, *place, "--detach"]) == 0
    assert capsys.readouterr().out == "first\n"
    assert main(["jobs", "list", "--json", *place]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["verb"], listed["state"]) == ("first", "pretrain", "pending")
    assert main(["jobs", "status", "first", *place]) == 0
    assert "does it run?" in capsys.readouterr().out
    assert main(["jobs", "logs", "first", *place]) == 0
    assert main(["jobs", "stop", "first", *place]) == 0
    assert "stopped" in capsys.readouterr().out
    assert main(["jobs", "status", "first", *place]) == 2
    assert "has no job 'first'" in capsys.readouterr().err
    _within_its_role(api)


def _within_its_role(api: KubeApi) -> None:
    """No more was asked of the server than the submitter's Role allows."""
    role = next(each for each in yaml.safe_load_all(ROLE.read_text()) if each["kind"] == "Role")
    allowed = {
        (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }
    names = {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch"}
    asked = {
        (resource, names[method]) for method, _, resource in (each.partition(" ") for each in api.requests)
    }
    assert asked - allowed == set()


def test_dry_run_needs_no_cluster_and_prints_what_kubectl_takes(
    place: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", "/home/me/runs")  # of this machine: the job's is the profile's
    assert main([*SUBMIT, *place, "--dry-run"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    assert (manifest["kind"], manifest["metadata"]["name"], manifest["metadata"]["namespace"]) == (
        "RayJob",
        "first",
        "team",
    )
    assert manifest["spec"]["entrypoint"] == "vergence pretrain /etc/vergence/recipe.yaml --name first"
    assert manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
    head = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert "train: /data/train-*.tar" in head["metadata"]["annotations"]["vergence/recipe.yaml"]
    assert {"name": "VERGENCE_HOME", "value": "/runs"} in head["spec"]["containers"][0]["env"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "k8s"], "give --profile FILE"),
        (["--to", "k8s", "--profile", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_place_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUBMIT, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_name_that_kubernetes_does_not_take_names_the_nearest(
    place: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SUBMIT, *place, "--name", "First_run", "--dry-run"]) == 2
    assert "nearest: first-run" in capsys.readouterr().err
