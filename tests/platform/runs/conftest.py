"""A bucket of moto's S3 for what runs keep in stores."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_servers import Faults, s3_server

from vergence.platform import store as stores


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[dict[str, str], Faults]]:
    faults = Faults()
    with s3_server("bucket", faults) as environment:
        yield environment, faults


@pytest.fixture
def faults(served: tuple[dict[str, str], Faults]) -> Faults:
    """Of the server of `bucket`; none at first."""
    served[1].__init__()  # type: ignore[misc]
    return served[1]


@pytest.fixture
def bucket(
    served: tuple[dict[str, str], Faults],
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[str]:
    """URL of a folder of this test's own; the state folder is `tmp_path`/here."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "here"))
    for name, value in served[0].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    stores._store.cache_clear()
    yield f"s3://bucket/{tmp_path.name}"
    faults.__init__()  # type: ignore[misc]
    stores._store.cache_clear()
