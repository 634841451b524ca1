"""A bucket of moto's S3 for what runs keep in stores."""

from pathlib import Path

import pytest

from vergence.platform import store as stores
from vergence.platform.runs import lease, mirror, remote


@pytest.fixture
def bucket(s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URL of a folder of this test's own; the state folder is `tmp_path`/here."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that looks, tries again and gives up soon."""
    for name, value in {"LOOK_S": 0.02, "RETRY_S": 0.1, "CLOSE_S": 1.0, "QUIET_S": 30.0}.items():
        monkeypatch.setattr(mirror, name, value)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(remote, "PATIENCE_S", 0.5)
