"""The RayJob of a job."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vergence.platform.cluster.capacity import Need, ScaleConfig
from vergence.platform.errors import UserError
from vergence.platform.jobs.check.check import faults_of
from vergence.platform.jobs.check.finding import Document
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.kubernetes.profile import Profile, load_profile
from vergence.platform.jobs.kubernetes.render import pod_cpus, rayjob, text

PROFILE = """
image: registry/vergence:0.1.0-ray2.60.0
namespace: team
queue: training
storage: {claim: runs, path: /runs}
data: [{claim: shards, path: /data, read_only: true}]
gpu: {node_selector: {gpu: a100}, tolerations: [{key: spot, operator: Exists}]}
environment: {MLFLOW_TRACKING_URI: "http://mlflow:5000", ANSWER: "yes"}
secrets: {AWS_SECRET_ACCESS_KEY: {secret: store, key: secret}}
pull_secrets: [registry]
token_secret: ray-token
limits: {deadline_s: 3600}
"""
TWO = Need(ScaleConfig(workers=2, cpus_per_worker=3), 4, 0.5)


def profile(tmp_path: Path, more: str = "") -> Profile:
    file = tmp_path / "cluster.yaml"
    file.write_text(PROFILE + more)
    return load_profile(file)


def job(need: Need | None = TWO, **more: Any) -> Job:
    arguments = more.pop("arguments", ["recipe.yaml", "--name", "moco"])
    return Job(
        more.pop("name", "moco"),
        more.pop("verb", "pretrain"),
        arguments,
        {"recipe.yaml": "epochs: 1\n"},
        need=need,
        **more,
    )


def pod(manifest: dict[str, Any], group: str) -> dict[str, Any]:
    cluster = manifest["spec"]["rayClusterSpec"]
    found = cluster["headGroupSpec"] if group == "head" else cluster["workerGroupSpecs"][0]
    spec: dict[str, Any] = found["template"]["spec"]
    return spec


@pytest.mark.parametrize("verb", ["pretrain", "tune", "embed", "evaluate"])
@pytest.mark.parametrize("need", [None, TWO, Need(ScaleConfig(workers=4, gpus_per_worker=1), 4, 0.5)])
def test_manifest_passes_the_checker(tmp_path: Path, verb: str, need: Need | None) -> None:
    manifest = rayjob(job(need, verb=verb), profile(tmp_path))
    assert list(map(str, faults_of(Document("it", manifest)))) == []


def test_scale_becomes_pods_of_a_worker_and_its_readers(tmp_path: Path) -> None:
    group = rayjob(job(), profile(tmp_path))["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "8Gi"}  # 3 and two readers of a half
    group = rayjob(job(verb="tune", concurrent=3), profile(tmp_path))["spec"]["rayClusterSpec"][
        "workerGroupSpecs"
    ][0]
    assert group["replicas"] == 6


def test_cpus_of_a_pod_are_rounded_up() -> None:
    assert pod_cpus(Need(ScaleConfig(workers=2), 2, 0.5)) == 2
    assert pod_cpus(Need(ScaleConfig(workers=3), 3, 1 / 3)) == 2
    assert pod_cpus(Need(ScaleConfig(workers=1, cpus_per_worker=4), 10, 0.1)) == 5


def test_gpus_bring_their_nodes(tmp_path: Path) -> None:
    workers = pod(
        rayjob(job(Need(ScaleConfig(workers=1, gpus_per_worker=1), 1, 0.5)), profile(tmp_path)), "workers"
    )
    assert workers["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert workers["nodeSelector"] == {"gpu": "a100"}
    assert [each["key"] for each in workers["tolerations"]] == ["nvidia.com/gpu", "spot"]
    without = pod(rayjob(job(), profile(tmp_path)), "workers")
    assert "nodeSelector" not in without
    assert "tolerations" not in without


def test_equal_jobs_have_equal_hashes_and_others_do_not(tmp_path: Path) -> None:
    def spec(made: Job, more: str = "") -> str:
        return str(rayjob(made, profile(tmp_path, more))["metadata"]["labels"]["vergence/spec"])

    assert spec(job()) == spec(job())
    others = [
        spec(job(None)),
        spec(job(home="/runs/a")),
        spec(job(), "shm: 3Gi\n"),
        spec(job(arguments=["recipe.yaml"])),
    ]
    assert len({spec(job()), *others}) == 5


def test_files_are_mounted_where_the_command_finds_them(tmp_path: Path) -> None:
    manifest = rayjob(job(), profile(tmp_path))
    assert manifest["spec"]["entrypoint"] == "vergence pretrain /etc/vergence/recipe.yaml --name moco"
    template = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert template["metadata"]["annotations"]["vergence/recipe.yaml"] == "epochs: 1\n"
    (volume,) = (each for each in template["spec"]["volumes"] if each["name"] == "files")
    field = {"fieldPath": "metadata.annotations['vergence/recipe.yaml']"}
    assert volume["downwardAPI"]["items"] == [{"path": "recipe.yaml", "fieldRef": field}]
    mount = {"name": "files", "mountPath": "/etc/vergence", "readOnly": True}
    assert mount in template["spec"]["containers"][0]["volumeMounts"]


def test_words_for_a_shell_go_into_a_file(tmp_path: Path) -> None:
    manifest = rayjob(job(verb="embed", arguments=["moco", "/data/x-*.tar", "/runs/it's"]), profile(tmp_path))
    assert manifest["spec"]["entrypoint"] == "sh /etc/vergence/command.sh"
    annotations = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert (
        annotations["vergence/command.sh"] == "exec vergence embed moco '/data/x-*.tar' '/runs/it'\"'\"'s'\n"
    )


def test_pods_stop_with_grace(tmp_path: Path) -> None:
    manifest = rayjob(job(), profile(tmp_path))
    head, workers = pod(manifest, "head"), pod(manifest, "workers")
    assert head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][:3] == ["ray", "job", "stop"]
    assert "ray job logs --follow" in workers["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2]
    assert head["terminationGracePeriodSeconds"] == workers["terminationGracePeriodSeconds"] == 600
    wait = {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "600"}
    assert wait in head["containers"][0]["env"]


def test_yaml_means_the_same_to_kubectl(tmp_path: Path) -> None:
    manifest = rayjob(job(), profile(tmp_path))
    written = text(manifest)
    assert yaml.safe_load(written) == manifest  # "yes" is a word, "0" a string
    assert "recipe.yaml: |" in written
    assert "*id" not in written


def test_secrets_are_references(tmp_path: Path) -> None:
    environment = pod(rayjob(job(), profile(tmp_path)), "head")["containers"][0]["env"]
    key = {"secretKeyRef": {"name": "store", "key": "secret"}}
    assert {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": key} in environment


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "MoCo_v2"}, "nearest: moco-v2"),
        ({"name": "a" * 48}, f"nearest: {'a' * 47}"),
        ({"home": "/home/me/runs"}, "is not on the shared volume"),
    ],
)
def test_what_a_rayjob_cannot_hold_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        rayjob(job(**changed), profile(tmp_path))


def test_large_files_are_refused(tmp_path: Path) -> None:
    large = Job("moco", "pretrain", ["recipe.yaml"], {"recipe.yaml": "#" * 300_000})
    with pytest.raises(UserError, match="300,000 bytes"):
        rayjob(large, profile(tmp_path))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("quue: a\n", r"quue is not a setting \(did you mean queue\?"),
        ("scratch: 8 GB\n", "scratch: string should match"),
        (
            "head: {memroy: 8Gi}\n",
            r"head.memory is missing; head.memroy is not a setting \(did you mean memory\?",
        ),
        ("worker: {memory: 8Gi, cpu: 0}\n", "worker.cpu: input should be greater than 0"),
    ],
)
def test_wrong_profile_is_told_by_path(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        profile(tmp_path, more)


def test_image_that_changes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(PROFILE.replace("vergence:0.1.0-ray2.60.0", "vergence:latest"))
    with pytest.raises(UserError, match="another one tomorrow"):
        load_profile(file)


def alone(tmp_path: Path) -> Profile:
    """A profile whose state folder is in one pod."""
    file = tmp_path / "alone.yaml"
    file.write_text(PROFILE.replace("{claim: runs, path: /runs}", "{size: 50Gi, path: /runs}"))
    return load_profile(file)


MIRRORED = {"recipe.yaml": "commit: {mirror: 's3://bucket/runs'}\n"}


def test_without_a_shared_volume_command_and_workers_are_one_pod(tmp_path: Path) -> None:
    need = Need(ScaleConfig(workers=2, cpus_per_worker=3, gpus_per_worker=1), 4, 0.5)
    manifest = rayjob(Job("moco", "pretrain", ["recipe.yaml"], MIRRORED, need=need), alone(tmp_path))
    assert list(map(str, faults_of(Document("it", manifest)))) == []
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["workerGroupSpecs"] == []
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "8"  # twice 3 and two readers of a half
    (container,) = pod(manifest, "head")["containers"]
    assert container["resources"]["limits"] == {"cpu": "10", "memory": f"{24 << 30}", "nvidia.com/gpu": 2}
    volumes = {each["name"]: each for each in pod(manifest, "head")["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert volumes[mounts["/runs"]] == {"name": "state", "emptyDir": {"sizeLimit": "50Gi"}}
    assert {"name": "VERGENCE_HOME", "value": "/runs"} in container["env"]
    assert pod(manifest, "head")["nodeSelector"] == {"gpu": "a100"}


def test_what_would_go_with_its_pod_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give commit\.mirror=s3://BUCKET/runs"):
        rayjob(job(), alone(tmp_path))
    with pytest.raises(UserError, match="a search has no mirror"):
        rayjob(job(verb="tune"), alone(tmp_path))
    (tmp_path / "both.yaml").write_text(PROFILE.replace("{claim: runs,", "{claim: runs, size: 1Gi,"))
    with pytest.raises(UserError, match="storage: give claim, a volume that pods share, or size"):
        load_profile(tmp_path / "both.yaml")
