"""A run on a real cluster of two nodes: submitted from a clean folder, stopped, submitted again, a node killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray_clusters
import torch
from ray_clusters import TOKEN, Cluster
from runs_for_real import vergence, wait_for_step

from vergence.platform.runs import commit as commits

pytestmark = pytest.mark.slow
SETTINGS = ["epochs=20", "scale.cpus_per_worker=2"]  # a worker fills two of the three CPUs of a node
STEPS = 180


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    programs = Path(sys.executable).parent
    with ray_clusters.cluster(cpus=3, path=f"{programs}:{os.environ['PATH']}") as started:
        started.add_node(cpus=3)
        yield started


class Submitter:
    """Somebody with a recipe, in a folder that holds nothing."""

    def __init__(self, cluster: Cluster, place: Path) -> None:
        self.place, self.folder = place, place / "clean"
        self.folder.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "VERGENCE_HOME"},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_API_SERVER_ADDRESS": cluster.address,
        }

    def run(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    def submit(self, log: Path) -> subprocess.Popen:
        recipe = str(self.place / "tiny.yaml")
        words = ["submit", "pretrain", recipe, *SETTINGS, "--to", "ray", "--home", str(self.place / "shared")]
        with log.open("w") as file:
            return subprocess.Popen(
                self.command(*words), cwd=self.folder, env=self.environment, stdout=file, stderr=file
            )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "vergence.pipelines.cli", *words]


def nodes_that_train(cluster: Cluster) -> int:
    families = [psutil.Process(node.pid).children(recursive=True) for node in cluster.nodes]
    return sum(any("RayTrainWorker" in " ".join(each.cmdline()) for each in family) for family in families)


def wait_until(true: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.2)


def final_state(run: Path) -> dict[str, torch.Tensor]:
    commit = commits.newest(run / "commits")
    assert commit is not None
    assert commit.step == STEPS
    return commits.load_state(commit)


def test_a_run_that_was_stopped_and_lost_a_node_is_bit_equal_to_one_left_alone(
    cluster: Cluster, place: Path
) -> None:
    done = vergence(place / "alone", "pretrain", str(place / "tiny.yaml"), *SETTINGS)
    assert done.returncode == 0, done.stderr
    user, run = Submitter(cluster, place), place / "shared" / "tiny"
    logs = [place / f"submit-{i}.log" for i in (1, 2)]

    first = user.submit(logs[0])
    wait_for_step(run, 20, first)
    assert nodes_that_train(cluster) == 2
    stopped = user.run("jobs", "stop", "tiny", "--to", "ray")
    assert (stopped.returncode, stopped.stdout[:23]) == (0, "tiny-1: pretrain, stopp"), stopped
    assert first.wait(60) == 143
    assert "stopped at step" in logs[0].read_text()
    reached = commits.newest(run / "commits")
    assert reached is not None
    assert 20 < reached.step < 150

    second = user.submit(logs[1])
    wait_for_step(run, reached.step + 10, second)
    assert f"goes on at step {reached.step}" in logs[1].read_text()
    cluster.kill_node()
    wait_until(lambda: "Ray has no room for 2 workers of 2 CPUs" in logs[1].read_text())
    cluster.add_node(cpus=3)
    assert second.wait(240) == 0, logs[1].read_text()[-2000:]
    assert user.run("jobs", "status", "tiny", "--to", "ray").stdout.startswith("tiny-2: pretrain, succeeded")

    state, reference = final_state(run), final_state(place / "alone" / "tiny")
    assert state.keys() == reference.keys()
    assert [name for name in state if not torch.equal(state[name], reference[name])] == []
    assert list(user.folder.iterdir()) == []
