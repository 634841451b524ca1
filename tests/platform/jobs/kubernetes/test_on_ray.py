"""What a rendered RayJob says, done by hand on a real Ray: pods are `ray start`, the submitter is a shell, kubelet is us."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import Cluster, cluster
from runs_for_real import TINY, write_shards

from vergence.pipelines.recipe import Recipe
from vergence.pipelines.resolve import need_of
from vergence.platform import yaml
from vergence.platform.jobs.job import Job
from vergence.platform.jobs.kubernetes.profile import Profile
from vergence.platform.jobs.kubernetes.render import DASHBOARD, FILES, rayjob
from vergence.platform.runs import commit as commits


def manifest(tmp_path: Path) -> dict[str, Any]:
    shards = write_shards(tmp_path / "shards")
    raw = yaml.parse(TINY.replace("SHARDS", json.dumps(shards)), "tiny")
    raw["epochs"], raw["track"]["register"] = 40, None
    recipe = Recipe.parse(raw, "tiny")
    profile = {
        "image": "registry/vergence:1",
        "namespace": "team",
        "storage": {"claim": "runs", "path": str(tmp_path / "runs")},
        "environment": {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    files = {"recipe.yaml": yaml.dump(recipe.dump())}
    job = Job("tiny", "pretrain", ["recipe.yaml", "--name", "tiny"], files, need=need_of(recipe))
    return rayjob(job, Profile.model_validate_json(json.dumps(profile)))


class Pods:
    """The pods of a RayJob's cluster, each a node of Ray on this machine."""

    def __init__(self, spec: dict[str, Any], cluster: Cluster, files: Path) -> None:
        self.spec, self.cluster, self.files = spec, cluster, files
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]
        self.container = head["spec"]["containers"][0]
        (volume,) = (each for each in head["spec"]["volumes"] if "downwardAPI" in each)
        for item in volume["downwardAPI"]["items"]:
            key = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
            (files / item["path"]).write_text(head["metadata"]["annotations"][key])

    def here(self, words: str) -> str:
        """A command of the manifest, with this machine's paths and ports."""
        address = f"127.0.0.1:{self.cluster.dashboard_port}"
        return (
            words.replace(FILES, str(self.files))
            .replace(f"127.0.0.1:{DASHBOARD}", address)
            .replace(f"$FQ_RAY_IP:{DASHBOARD}", address)
        )

    def submit(self, id: str) -> None:
        """As KubeRay's submitter does: the entrypoint is pasted raw into a line of bash."""
        line = f"ray job submit --no-wait --submission-id {id} --address {self.cluster.address} -- {self.spec['entrypoint']}"
        subprocess.run(
            ["bash", "-ce", self.here(line)], env=self.cluster.environment, check=True, capture_output=True
        )

    def status(self, id: str) -> str:
        ask = ["ray", "job", "status", "--address", self.cluster.address, id]
        said = subprocess.run(
            ask, env=self.cluster.environment, check=True, capture_output=True, text=True
        ).stdout
        return next((word for word in ("SUCCEEDED", "FAILED", "STOPPED") if word in said.upper()), said)


def newest(run: Path) -> int:
    """Step of the newest commit; 0 without one."""
    found = [commits.read(path) for path in (run / "commits").glob("step-*")]
    return max((commit.step for commit in found if commit), default=0)


def wait_for(holds: Callable[[], object], most_s: float) -> None:
    until = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < until, "it never was"
        time.sleep(0.2)


@pytest.mark.slow
def test_rendered_job_runs_commits_when_its_pods_end_and_goes_on(tmp_path: Path) -> None:
    rendered = manifest(tmp_path)
    spec = rendered["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    environment = {each["name"]: each["value"] for each in container["env"]}
    environment |= {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }  # one /tmp for all on this machine
    files = tmp_path / "etc"
    files.mkdir()
    with cluster(int(spec["headGroupSpec"]["rayStartParams"]["num-cpus"]), extra=environment) as started:
        for _ in range(group["replicas"]):
            started.add_node(int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]))
        pods = Pods(rendered["spec"], started, files)
        pods.submit("tiny")
        run = tmp_path / "runs" / "tiny"
        wait_for(lambda: newest(run), 200)

        # the pods are to end: workers wait, the head has the run commit
        waits = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        waiting = subprocess.Popen([pods.here(word) for word in waits], env=started.environment)
        stops = container["lifecycle"]["preStop"]["exec"]["command"]
        subprocess.run([pods.here(word) for word in stops], env=started.environment, check=True)
        assert waiting.wait(30) == 0
        assert pods.status("tiny") == "STOPPED"
        assert 0 < newest(run) < 360

        pods.submit("tiny-2")  # KubeRay's retry: a new cluster, where the id is free again
        wait_for(lambda: "SUCCEEDED" in pods.status("tiny-2"), 300)
    assert newest(run) == 360
    lines = (run / "logs" / "metrics.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if "loss" in record]
    assert steps == list(range(360)), "it went on where it had committed"
