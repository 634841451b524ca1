"""An API server that is a double, and jobs that go there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_api import KubeApi, kube_api
from kube_jobs import PROFILE

from vergence.platform.jobs.kubernetes.jobs import KubernetesJobs


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
