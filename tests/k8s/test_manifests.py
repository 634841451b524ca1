"""k8s/: every overlay builds and passes the checker, and holds what it promises."""

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vergence.pipelines.recipe import load_recipe
from vergence.pipelines.resolve import need_of
from vergence.platform import yaml
from vergence.platform.jobs.check.check import faults
from vergence.platform.jobs.check.documents import build, parse
from vergence.platform.jobs.check.finding import Document, dig
from vergence.platform.jobs.check.pods import CLUSTERS, templates
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.kubernetes.profile import Profile, load_profile
from vergence.platform.jobs.kubernetes.render import pod_cpus, rayjob
from vergence.platform.search.config import SearchConfig

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("dev", "gpu", "production", "stores")


@cache
def built(overlay: str) -> list[Document]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which builds kustomizations, is not on this machine")
    return parse(build(K8S / "overlays" / overlay), overlay)


def of(overlay: str, kind: str, name: str = "") -> list[dict[str, Any]]:
    return [each.value for each in built(overlay) if each.kind == kind and name in ("", each.name)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_builds_and_has_no_faults(overlay: str) -> None:
    assert list(map(str, faults(built(overlay)))) == []
    jobs = {(each.kind, each.name) for each in built(overlay) if each.group == "ray.io"}
    search = {("RayJob", "tune")} if overlay != "stores" else set()  # a search has no mirror
    assert jobs == {("RayJob", "pretrain"), ("RayService", "encoder")} | search


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_limited_and_watched(overlay: str) -> None:
    for document in built(overlay):
        for template in templates(document):
            where = f"{document.kind}/{document.name} {template.path}"
            pod = template.spec
            assert pod["securityContext"]["runAsNonRoot"] is True, where
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
            assert pod["automountServiceAccountToken"] is False, where
            for path, container in template.containers():
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] is True, path
                assert security["allowPrivilegeEscalation"] is False, path
                assert security["capabilities"] == {"drop": ["ALL"]}, path
                assert {"cpu", "memory"} <= set(container["resources"]["limits"]), path
                once = "initContainers" in path or "submitter" in path
                assert once or "startupProbe" in container, path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_asks_for_tokens_and_heads_are_protected(overlay: str) -> None:
    for document in built(overlay):
        if document.kind in CLUSTERS:
            options = dig(document.value, f"{CLUSTERS[document.kind]}.authOptions")
            assert options == {"mode": "token", "secretName": "ray-token"}
            (budget,) = of(overlay, "PodDisruptionBudget", f"{document.name}-head")
            assert budget["spec"]["minAvailable"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_talks_but_by_rule_and_no_secret_is_written_down(overlay: str) -> None:
    (denied,) = of(overlay, "NetworkPolicy", "default-deny")
    assert denied["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert of(overlay, "Secret") == []
    (namespace,) = of(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", ["base", "overlays/dev", "overlays/gpu"])
def test_recipe_fits_the_pods_that_train_it(folder: str) -> None:
    need = need_of(load_recipe(str(K8S / folder / "files" / "pretrain.yaml")))
    (job,) = of(folder.rpartition("/")[2], "RayJob", "pretrain") if folder != "base" else parse_base()
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == need.scale.workers
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) == pod_cpus(need)
    assert limits.get("nvidia.com/gpu", 0) == need.scale.gpus_per_worker


def test_overlay_of_stores_has_no_volume_that_pods_share() -> None:
    assert of("stores", "PersistentVolumeClaim") == []
    for document in built("stores"):
        for template in templates(document):
            assert not [each for each in template.spec["volumes"] if "persistentVolumeClaim" in each]
    modes = [
        claim["spec"]["accessModes"]
        for owner in of("stores", "StatefulSet")
        for claim in owner["spec"]["volumeClaimTemplates"]
    ]
    assert modes
    assert all(each == ["ReadWriteOnce"] for each in modes)


def test_overlay_of_stores_has_all_ranks_in_the_pod_of_the_command() -> None:
    recipe = load_recipe(str(K8S / "overlays" / "stores" / "files" / "pretrain.yaml"))
    need = need_of(recipe)
    assert recipe.data.train.startswith("s3://")
    assert recipe.commit.mirror == "s3://runs"
    (job,) = of("stores", "RayJob", "pretrain")
    cluster = job["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in cluster
    head = cluster["headGroupSpec"]
    (container,) = head["template"]["spec"]["containers"]
    cpus = need.scale.workers * pod_cpus(need)
    assert int(head["rayStartParams"]["num-cpus"]) == cpus
    assert int(container["resources"]["limits"]["cpu"]) > cpus
    assert container["resources"]["limits"]["nvidia.com/gpu"] == need.scale.workers
    environment = {each["name"]: each for each in container["env"]}
    assert environment["VERGENCE_HOME"]["value"] == "/runs"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment[name]["valueFrom"]["secretKeyRef"]["name"] == "objects"
    volumes = {each["name"]: each for each in head["template"]["spec"]["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert "emptyDir" in volumes[mounts["/runs"]]


def parse_base() -> list[dict[str, Any]]:
    documents = parse((K8S / "base" / "pretrain.yaml").read_text(), "pretrain.yaml")
    return [each.value for each in documents if each.kind == "RayJob"]


def test_job_of_the_example_profile_belongs_into_the_overlay() -> None:
    recipe = load_recipe(str(K8S / "overlays" / "gpu" / "files" / "pretrain.yaml"))
    files = {"recipe.yaml": yaml.dump(recipe.dump())}
    job = Job("first", "pretrain", ["recipe.yaml", "--name", "first"], files, need=need_of(recipe))
    rendered = rayjob(job, load_profile(K8S / "profiles" / "example.yaml"))
    assert list(map(str, faults([*built("gpu"), Document("first", rendered)]))) == []


def test_search_of_the_tune_job_is_one() -> None:
    raw = yaml.read(K8S / "base" / "files" / "search.yaml")
    assert SearchConfig.model_validate(raw).num_trials == 4


def test_profile_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (K8S.parent / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "cluster.yaml").write_text(block)
    profile = load_profile(tmp_path / "cluster.yaml")
    assert profile.gpu.node_selector == {"gpu": "a100"}
    assert set(Profile.model_fields) - set(profile.model_fields_set) == {
        "ray_version",
        "priority_class",
        "shm",
    }
