"""The store of a block is MLflow's current one inside it, and only there."""

import os
import shutil
from pathlib import Path

import mlflow
import pytest

from vergence.platform.mlflow_store import store


@pytest.mark.parametrize("chosen", ["nothing", "in code", "in the environment"])
def test_mlflow_means_the_same_store_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, chosen: str
) -> None:
    others = f"sqlite:///{tmp_path}/others.db"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(others if chosen == "in code" else None)
    mlflow.set_registry_uri(None)
    if chosen == "in the environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", others)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)
    ours = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    with store(ours):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (ours, ours)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)) == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///later.db")
    assert mlflow.get_registry_uri() == (others if chosen == "in code" else "sqlite:///later.db")
    mlflow.set_tracking_uri(None)
