"""Jobs on Kubernetes as tests submit and follow them; `kube_api` is the server."""

import json
import threading
import time
from collections.abc import Callable

from kube_api import KubeApi

from vergence.platform.cluster.capacity import Need, ScaleConfig
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
