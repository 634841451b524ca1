"""Members of shards behind a web server: the bytes of the files by few requests; faults pass, or end in one line."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from object_servers import Faults, web_server
from shard_files import png, write_shard

from vergence.platform import store as stores
from vergence.platform.data import remote
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.order import Order
from vergence.platform.data.plan import Plan
from vergence.platform.data.read import Reader
from vergence.platform.data.remote import Access
from vergence.platform.errors import VergenceError
from vergence.platform.store import Away, Changed, store_of

NUM, PER_SHARD, CHUNK = 240, 100, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 5, 6, 3), np.uint8)
ALONE = Access(patience_s=5, chunk=None)
RANDOM = np.random.default_rng(1).permutation(NUM)


@pytest.fixture
def files(tmp_path: Path) -> Index:
    for number in range(-(-NUM // PER_SHARD)):
        ids = range(number * PER_SHARD, min(NUM, (number + 1) * PER_SHARD))
        samples = [(f"k{i:03d}", {"cls": b"%d" % (i % 4), "png": png(IMAGES[i])}) for i in ids]
        write_shard(tmp_path / f"s/{number}.tar", samples)
    return open_index(tmp_path / "s", tmp_path / "index")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    return Faults()


def at(files: Index, urls: Sequence[str], path: Path) -> Index:
    """The same set with its shards at these URLs."""
    table = pq.read_table(files.path)
    about = json.loads(table.schema.metadata[b"vergence"])
    about["shards"] = [list(store_of(url).stat(url)) for url in urls]
    pq.write_table(table.replace_schema_metadata({"vergence": json.dumps(about)}), path)
    return Index(path)


@pytest.fixture
def moved(files: Index, tmp_path: Path, faults: Faults) -> Iterator[Index]:
    """The same set behind a web server."""
    with web_server(tmp_path / "s", faults) as address:
        urls = [f"{address}/{number}.tar" for number in range(len(files.shards))]
        index = at(files, urls, tmp_path / "moved.parquet")
        faults.requests.clear()
        yield index


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(patience_s=5, chunk=CHUNK, folder=tmp_path / "node", limit=10**7)


def test_members_are_those_of_the_files(files: Index, moved: Index, access: Access, faults: Faults) -> None:
    expected = Reader(files).raw(RANDOM, "image")
    assert Reader(moved, access=ALONE).raw(RANDOM, "image") == expected
    assert Reader(moved, access=access).raw(RANDOM, "image") == expected
    assert Reader(moved, access=access).raw(RANDOM[:7], "cls") == Reader(files).raw(RANDOM[:7], "cls")
    assert Reader(moved, access=ALONE).raw(RANDOM[:3], "json") == [None] * 3


def test_a_set_may_lie_in_several_stores(
    files: Index, access: Access, tmp_path: Path, faults: Faults
) -> None:
    with web_server(tmp_path / "s", faults) as one, web_server(tmp_path / "s") as other:
        urls = [f"{one if number else other}/{number}.tar" for number in range(len(files.shards))]
        scattered = at(files, urls, tmp_path / "scattered.parquet")
        faults.errors = 0.6
        for how in (access, ALONE):
            reader = Reader(scattered, access=how)
            assert reader.raw(RANDOM, "image") == Reader(files).raw(RANDOM, "image")
        assert reader.remote.retries() > 0


def test_neighbours_are_asked_for_once(moved: Index, faults: Faults) -> None:
    Reader(moved, access=ALONE).raw(np.arange(NUM), "image")
    assert len(faults.requests) == 3  # one a shard
    faults.requests.clear()
    Reader(moved, access=ALONE).raw(np.array([0, 9]), "image")
    assert len(faults.requests) == 1  # what lies between is less than a request costs


def test_a_chunk_is_fetched_once_for_all_its_samples_and_readers(
    moved: Index, access: Access, faults: Faults
) -> None:
    one, other = Reader(moved, access=access), Reader(moved, access=access)
    for ids in np.split(RANDOM, 6):
        one.raw(ids[::2], "image")
        other.raw(ids[1::2], "image")
    pieces = NUM / CHUNK + len(moved.shards)
    assert len(faults.requests) <= pieces
    faults.requests.clear()
    one.raw(RANDOM, "image")
    Reader(moved, access=access).raw(RANDOM, "image")
    assert faults.requests == []


def test_in_any_order_pieces_are_kept_only_if_all_of_them_fit(
    moved: Index, access: Access, faults: Faults
) -> None:
    in_any_order = replace(access, only_if_all_fit=True)
    assert Reader(moved, access=in_any_order).remote.cache is not None
    assert Reader(moved, access=replace(in_any_order, limit=1000)).remote.cache is None
    assert Reader(moved, access=replace(access, limit=1000)).remote.cache is not None


READ = """
import sys
from pathlib import Path
import numpy as np
from vergence.platform.data.index import Index
from vergence.platform.data.read import Reader
from vergence.platform.data.remote import Access

path, folder, chunk, start = sys.argv[1:]
access = Access(patience_s=5, chunk=int(chunk), folder=Path(folder))
index = Index(Path(path))
Reader(index, access=access).raw(np.roll(np.random.default_rng(1).permutation(len(index)), int(start)), "image")
"""


def test_processes_that_want_the_same_chunks_share_them(moved: Index, access: Access, faults: Faults) -> None:
    faults.latency_s = 0.01
    command = [sys.executable, "-c", READ, str(moved.path), str(access.folder), str(CHUNK)]
    processes = [subprocess.Popen([*command, start]) for start in ("0", "100")]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(faults.requests) <= NUM / CHUNK + len(moved.shards)


def test_faults_that_pass_change_nothing(files: Index, moved: Index, access: Access, faults: Faults) -> None:
    faults.errors = faults.busy = faults.resets = faults.halves = 0.1
    expected = Reader(files).raw(RANDOM, "image")
    assert Reader(moved, access=access).raw(RANDOM, "image") == expected
    assert Reader(moved, access=ALONE).raw(RANDOM, "image") == expected


def test_a_store_that_comes_back_is_waited_for_and_one_that_does_not_ends_in_a_line(
    moved: Index, access: Access, faults: Faults
) -> None:
    faults.away = True
    with pytest.raises(Away, match=r"0\.tar: the store has not answered as it should for"):
        Reader(moved, access=replace(access, patience_s=0.3)).raw(RANDOM, "image")
    back = threading.Timer(0.5, setattr, (faults, "away", False))
    back.start()
    assert len(Reader(moved, access=access).raw(RANDOM, "image")) == NUM
    back.join()


def test_an_object_that_has_changed_ends_in_a_line(
    moved: Index, access: Access, tmp_path: Path, faults: Faults
) -> None:
    shard = tmp_path / "s/1.tar"
    Reader(moved, access=access).raw(np.arange(100, 116), "image")
    shard.write_bytes(shard.read_bytes())
    for how in (access, ALONE):
        with pytest.raises(Changed, match=r"1\.tar: has changed since it was indexed"):
            Reader(moved, access=how).raw(np.arange(150, 160), "image")
    assert len(faults.requests) <= 8  # not asked for again


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_pieces_damaged_by_hand_are_fetched_again(
    files: Index, moved: Index, access: Access, faults: Faults, damage: bytes
) -> None:
    reader = Reader(moved, access=access)
    expected = reader.raw(RANDOM, "image")
    for path in access.folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(damage + data[2 * len(damage) :] if damage else data[:-1])
    assert reader.raw(RANDOM, "image") == expected  # through files that are open
    assert Reader(moved, access=access).raw(RANDOM, "image") == expected


def test_a_piece_that_made_room_is_let_go(moved: Index, access: Access, faults: Faults) -> None:
    reader = Reader(moved, access=access)
    reader.raw(RANDOM, "image")
    for path in access.folder.iterdir():
        path.unlink()
    faults.requests.clear()
    reader.raw(np.arange(CHUNK), "image")
    assert len(faults.requests) == 1
    held = [path.name for path in access.folder.iterdir()]
    assert len(held) == 1
    assert {Path(each.name).name for each in reader.remote._files.values()} == set(held)


def test_a_folder_that_is_wiped_is_filled_again(
    files: Index, moved: Index, access: Access, faults: Faults
) -> None:
    reader = Reader(moved, access=access)
    reader.raw(RANDOM, "image")
    shutil.rmtree(access.folder)
    faults.requests.clear()
    for _ in range(2):
        assert reader.raw(RANDOM, "image") == Reader(files).raw(RANDOM, "image")
    assert len(faults.requests) <= NUM / CHUNK + len(moved.shards)
    assert not reader.remote.is_bypassed


def test_who_stands_still_while_it_fetches_is_waited_for_as_long_as_the_store(
    files: Index, moved: Index, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader(moved, access=replace(access, patience_s=0.2))
    claim = reader.remote.cache.claim(reader.remote._pieces[3].name)
    with claim, caplog.at_level(logging.WARNING):
        assert reader.raw(RANDOM, "image") == Reader(files).raw(RANDOM, "image")
    [line] = caplog.messages
    assert line.endswith("without a cache (another process holds a piece and does not fetch it)")


def test_a_cache_too_small_for_a_piece_is_done_without(
    files: Index, moved: Index, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = Reader(moved, access=replace(access, limit=100)).raw(RANDOM, "image")
    assert found == Reader(files).raw(RANDOM, "image")
    [line] = caplog.messages
    assert line.endswith("without a cache (too small: pieces make room before they are read)")


def test_pieces_that_are_large_are_fetched_one_by_one(
    moved: Index, access: Access, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched is in memory until it is kept."""
    monkeypatch.setattr(remote, "HELD", 1)
    at_once, draw = list[int](), faults.draw

    def counted(request: str) -> str | None:
        at_once.append(len([*access.folder.glob("*.part")]))
        return draw(request)

    monkeypatch.setattr(faults, "draw", counted)
    Reader(moved, access=access).raw(RANDOM, "image")
    assert set(at_once) == {1}


def test_a_disk_that_is_full_costs_the_cache_and_nothing_else(
    files: Index,
    moved: Index,
    access: Access,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    reader = Reader(moved, access=access)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert reader.raw(RANDOM, "image") == Reader(files).raw(RANDOM, "image")
    [line] = [record.getMessage() for record in caplog.records]
    assert (
        line
        == f"{access.folder}: cannot be used; the store is read without a cache (No space left on device)"
    )


def test_a_folder_that_cannot_be_made_is_done_without(
    moved: Index, access: Access, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        Reader(moved, access=replace(access, folder=tmp_path / "file/node")).raw(RANDOM, "image")
    assert "the store is read without a cache" in caplog.text


def test_few_open_files_and_many_pieces(
    files: Index, moved: Index, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "OPEN_PIECES", 4)
    monkeypatch.setattr(remote, "CLAIMED", 3)
    before = len(os.listdir("/proc/self/fd"))
    reader = Reader(moved, access=access)
    for _ in range(2):
        assert reader.raw(RANDOM, "image") == Reader(files).raw(RANDOM, "image")
    assert len(os.listdir("/proc/self/fd")) <= before + 4 + stores.AT_ONCE + 2


def test_the_next_window_is_there_when_it_is_needed(moved: Index, access: Access, faults: Faults) -> None:
    plan = Plan(NUM, 0.1, 7, 12, Order(kind="chunk", chunk=CHUNK, window=6))
    reader, waited = Reader(moved, access=access), list[int]()
    for step in range(2 * plan.batches_per_epoch):
        epoch, batch = divmod(step, plan.batches_per_epoch)
        before = len(faults.requests)
        reader.raw(plan.batch_ids(step), "image")
        waited.append(len(faults.requests) - before)
        reader.fetch_ahead(plan.coming(epoch, batch, batch + 1, is_last=False), "image")
        while not reader.remote._ahead.done():
            time.sleep(0.001)
    assert sum(waited[1:]) <= 3  # all but the first window came ahead
    assert len(faults.requests) <= NUM / CHUNK + len(moved.shards)


def test_what_fails_ahead_is_told_to_who_reads(moved: Index, access: Access, faults: Faults) -> None:
    reader = Reader(moved, access=replace(access, patience_s=0.1))
    faults.away = True
    reader.fetch_ahead(np.arange(20), "image")
    with pytest.raises(VergenceError, match="has not answered"):
        reader.raw(np.arange(20), "image")
