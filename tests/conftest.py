"""Fixtures of the whole suite."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import mlflow_stores
import pytest
from object_servers import Faults, s3_server

from vergence.platform import mlflow_store
from vergence.platform import store as stores

os.environ["OMP_NUM_THREADS"] = "1"  # forked ranks hang in a pool of threads that their parent has used


def _without(what: str) -> NoReturn:
    """Some machines lack what a test needs, and nothing of ours is to blame: a skip there, a failure in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data sets (VERGENCE_SHARED); skipped without it, a failure under CI=true."""
    root = os.environ.get("VERGENCE_SHARED", "")
    if root and (Path(root) / "data").is_dir():
        return Path(root).resolve()
    _without("VERGENCE_SHARED does not name a folder with data/")


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Path]]:
    """Makes a folder a tmpfs of 1 MiB, so that a disk can really be full; skipped without the right to mount, but in CI."""
    mounted = []

    def mount(folder: Path) -> Path:
        folder.mkdir(parents=True)
        if os.system(f"mount -t tmpfs -o size=1m tmpfs {folder} 2>/dev/null"):
            _without("mounting a tmpfs needs a right that this user does not have")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        os.system(f"umount {folder}")


@pytest.fixture
def unshared() -> Iterator[Callable[[Sequence[str]], subprocess.Popen[str]]]:
    """Starts a command in a process id namespace of its own, as a container; skipped without the right to, but in CI."""
    processes = []

    def start(command: Sequence[str]) -> subprocess.Popen[str]:
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
        processes.append(subprocess.Popen(inside, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    if os.system("unshare --pid --fork true 2>/dev/null"):
        _without("a process id namespace needs a right that this user does not have")
    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def disk_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What this process does from here on, in order: ("synced", path) and ("renamed", old path)."""
    events: list[tuple[str, str]] = []
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}")))

    def note_rename(rename: Callable[..., None], old: Path, new: Path) -> None:
        rename(old, new)
        events.append(("renamed", str(old)))

    monkeypatch.setattr(os, "fsync", note_fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, partial(note_rename, getattr(os, name)))
    return events


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[tuple[dict[str, str], Faults]]:
    """moto's S3 with a bucket called bucket: the environment in which it is there, and what its server does wrong."""
    faults = Faults()
    with s3_server("bucket", faults) as environment:
        yield environment, faults


@pytest.fixture
def faults(bucket_server: tuple[dict[str, str], Faults]) -> Iterator[Faults]:
    """Of that server; none at first."""
    bucket_server[1].__init__()  # type: ignore[misc]
    yield bucket_server[1]
    bucket_server[1].__init__()  # type: ignore[misc]


@pytest.fixture
def s3_environment(
    bucket_server: tuple[dict[str, str], Faults], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """That of `s3://bucket`, for this process and those that it starts."""
    for name, value in bucket_server[0].items():
        monkeypatch.setenv(name, value)
    stores._store.cache_clear()
    yield
    stores._store.cache_clear()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with MLflow's tables, to copy: making them takes seconds."""
    path = tmp_path_factory.mktemp("empty-store") / "mlflow.db"
    with mlflow_store.store(mlflow_store.sqlite_uri(path)) as client:
        client.search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server for all tests: it takes 10 s or more to start."""
    with mlflow_stores.mlflow_server(tmp_path_factory.mktemp("mlflow-server")) as address:
        yield address
