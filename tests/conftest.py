"""Fixtures of the whole suite."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # forked ranks hang in a pool of threads that their parent has used


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data sets (VERGENCE_SHARED); skipped without it, a failure under CI=true."""
    root = os.environ.get("VERGENCE_SHARED", "")
    if root and (Path(root) / "data").is_dir():
        return Path(root).resolve()
    message = "VERGENCE_SHARED does not name a folder with data/"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Path]]:
    """Makes a folder a tmpfs of 1 MiB, so that a disk can really be full; skipped without the right to mount."""
    mounted = []

    def mount(folder: Path) -> Path:
        folder.mkdir(parents=True)
        if os.system(f"mount -t tmpfs -o size=1m tmpfs {folder} 2>/dev/null"):
            pytest.skip("mounting a tmpfs needs a right that this user does not have")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        os.system(f"umount {folder}")
