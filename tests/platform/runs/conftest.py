"""A bucket of moto's S3 for what runs keep in stores."""

from pathlib import Path

import pytest

from vergence.platform import store as stores


@pytest.fixture
def bucket(s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URL of a folder of this test's own; the state folder is `tmp_path`/here."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    return f"s3://bucket/{tmp_path.name}"
