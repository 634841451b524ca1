"""Training from S3 as from files, whatever the store, the disk and the processes do meanwhile."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from object_servers import Faults, s3_server
from runs_for_real import TINY, family, kill_everything, start, vergence, wait_for_step, write_shards

from vergence.platform.runs import commit as commits
from vergence.platform.store import store_of

CHUNKS = "data.order={kind: chunk, chunk: 16, window: 8}"


class Place(NamedTuple):
    folder: Path
    local: str
    remote: str
    faults: Faults

    def arguments(self, train: str, name: str, *settings: str) -> list[str]:
        recipe = self.folder / "tiny.yaml"
        return [
            "pretrain",
            str(recipe),
            f"data.train={train}",
            *settings,
            "track.register=null",
            "--name",
            name,
        ]

    def state(self, name: str) -> dict[str, torch.Tensor]:
        newest = commits.newest(self.folder / "home" / name / "commits")
        assert newest is not None
        return commits.load_state(newest)

    def same(self, name: str, other: str) -> bool:
        one, two = self.state(name), self.state(other)
        return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, faults = tmp_path_factory.mktemp("stores"), Faults()
    pattern = write_shards(folder / "shards")
    (folder / "tiny.yaml").write_text(TINY.replace("SHARDS", pattern))
    with s3_server("training", faults) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for shard in sorted((folder / "shards").iterdir()):
            store_of("s3://training").put(f"s3://training/shards/{shard.name}", shard.read_bytes())
        yield Place(folder, pattern, "s3://training/shards", faults)


@pytest.fixture(autouse=True)
def no_faults(place: Place) -> Iterator[None]:
    place.faults.__init__()  # type: ignore[misc]
    yield
    place.faults.__init__()  # type: ignore[misc]


def run(place: Place, train: str, name: str, *settings: str, code: int = 0) -> str:
    done = vergence(place.folder / "home", *place.arguments(train, name, *settings))
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_full_order_from_a_store_trains_as_from_files(place: Place) -> None:
    """Two workers, fp32: bit-equal."""
    run(place, place.local, "files")
    run(place, place.remote, "store", "data.order.kind=full")
    assert place.same("files", "store")


@pytest.mark.slow
def test_what_passes_leaves_no_trace_in_the_weights(place: Place) -> None:
    """Errors, a store away or slow, kills of a reader and of all, pieces damaged by hand: as from files undisturbed."""
    cache = place.folder / "node"
    long = CHUNKS, "epochs=12"
    run(place, place.local, "undisturbed", *long)
    faults, home = place.faults, place.folder / "home"
    faults.errors, faults.resets, faults.halves = 0.2, 0.05, 0.05
    arguments = place.arguments(place.remote, "disturbed", *long, f"data.cache.folder={cache}")
    log, folder = place.folder / "disturbed.log", home / "disturbed"
    process = start(home, *arguments, log=log)
    try:
        _wait_until_shards_are_read(folder, faults)  # nothing is ahead yet that would hide what follows
        faults.away = True
        _empty(cache)
        time.sleep(15)
        readers = _readers(process)
        for reader in readers:
            reader.kill()
        time.sleep(15)
        faults.away, faults.one_byte_a_second = False, True
        time.sleep(5)
        faults.one_byte_a_second = False
        wait_for_step(folder, 30, process)
    finally:
        kill_everything(process)
    assert readers
    for i, path in enumerate(sorted(cache.iterdir())):
        path.write_bytes(path.read_bytes()[: -1 - i % 2])
    told = run(place, place.remote, "disturbed", *long, f"data.cache.folder={cache}")
    assert "goes on at step" in told
    assert place.same("undisturbed", "disturbed")


def _wait_until_shards_are_read(run: Path, faults: Faults) -> None:
    """By reader tasks: the index is made before the workers begin."""
    deadline = time.monotonic() + 180
    while not (run / "logs/rank-0.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    faults.requests.clear()
    while not any(request.startswith("GET") and request.endswith(".tar") for request in faults.requests):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _empty(cache: Path) -> None:
    """What is read next must come again."""
    for path in cache.glob("*"):
        path.unlink(missing_ok=True)


def _readers(process: subprocess.Popen) -> list[psutil.Process]:
    """Worker processes of Ray in which reader tasks run."""
    found = []
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(member.cmdline())
            if title.startswith("ray::") and "MapBatches" in title:
                found.append(member)
    return found


@pytest.mark.slow
def test_a_full_disk_costs_the_cache_and_a_second_epoch_needs_no_store(place: Place) -> None:
    told = run(place, place.remote, "no-cache", CHUNKS, "data.cache.folder=/dev/null/node")
    assert "the store is read without a cache" in told
    place.faults.requests.clear()
    run(place, place.remote, "cached", CHUNKS, f"data.cache.folder={place.folder / 'cached'}")
    assert place.same("no-cache", "cached")
    shards = [request for request in place.faults.requests if request.endswith(".tar")]
    assert len([request for request in shards if request.startswith("GET")]) <= 2 * (640 / 16 + 2)


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_in_a_line_and_it_goes_on_later(place: Place) -> None:
    cache = f"data.cache.folder={place.folder / 'away'}"
    settings = CHUNKS, cache, "data.patience=3", "epochs=40"
    arguments = place.arguments(place.remote, "patient", *settings)
    log, home = place.folder / "away.log", place.folder / "home"
    process = start(home, *arguments, log=log)
    wait_for_step(home / "patient", 4, process)
    place.faults.away = True
    _empty(place.folder / "away")
    assert process.wait(120) == 1
    [line] = [line for line in log.read_text().splitlines() if "has not answered as it should" in line]
    assert ".tar" in line
    place.faults.away = False
    goes_on = start(home, *arguments, log=log)
    deadline = time.monotonic() + 90
    while "goes on at step" not in log.read_text():
        assert goes_on.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    kill_everything(goes_on)


@pytest.mark.slow
def test_a_shard_that_changes_ends_the_run_at_once(place: Place) -> None:
    cache = place.folder / "changed"
    arguments = place.arguments(place.remote, "changed", CHUNKS, f"data.cache.folder={cache}", "epochs=40")
    log, home = place.folder / "changed.log", place.folder / "home"
    process = start(home, *arguments, log=log)
    wait_for_step(home / "changed", 4, process)
    shard = place.folder / "shards/train-000001.tar"
    store_of("s3://training").put("s3://training/shards/train-000001.tar", shard.read_bytes() + bytes(10240))
    _empty(cache)
    try:
        assert process.wait(120) == 1
        assert "has changed since it was indexed" in log.read_text()
        assert log.read_text().count("goes on at step") == 0
    finally:
        store_of("s3://training").put("s3://training/shards/train-000001.tar", shard.read_bytes())


def test_wrong_credentials_and_names_end_before_anything_starts(place: Place, tmp_path: Path) -> None:
    began = time.monotonic()
    for train, words in (
        ("s3://none/shards", "there is no such bucket"),
        ("s3://training/nothing", "s3://training/nothing"),
        ("hdfs://host/shards", "no store is reached by hdfs://"),
    ):
        assert words in run(place, train, "never", code=2)
    assert time.monotonic() - began < 60
    assert not (place.folder / "home/never/logs").exists()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in (place.folder / "tiny.yaml").read_text()
