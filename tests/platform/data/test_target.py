"""Packing into a store: the bytes of a folder, and the first to claim it is right."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_servers import Faults, s3_server
from shard_files import image_folder

from vergence.platform.data.index import open_index
from vergence.platform.data.labels import read_names
from vergence.platform.data.shards import pack
from vergence.platform.errors import UserError
from vergence.platform.store import Store, name_of


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with s3_server("packed", Faults()) as environment:
        yield environment


@pytest.fixture
def bucket(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Store("s3://packed")


def stored(bucket: Store, url: str) -> dict[str, bytes]:
    return {name_of(each.url): bucket.get(each.url)[0] for each in bucket.list(url)}


def test_a_pack_into_a_store_is_one_into_a_folder_byte_for_byte(tmp_path: Path, bucket: Store) -> None:
    root, url = image_folder(tmp_path / "src"), "s3://packed/whole"
    (root / "cat/long.png").write_bytes(np.random.default_rng(0).bytes(6 << 20))  # goes in several parts
    local = pack(root, tmp_path / "out", per_shard=4)
    done = pack(root, f"{url}/", per_shard=4)
    assert [*done.shards] == [f"{url}/train-{i:06d}.tar" for i in range(3)]
    assert (done.num_written, done.num_samples, done.classes) == (3, 11, local.classes)
    found = stored(bucket, url)
    for path in (tmp_path / "out").glob("[!.]*"):
        assert found.pop(path.name) == path.read_bytes()
    assert sorted(found) == [f"train-{i:06d}.tar.idx" for i in range(3)]
    index = open_index(url, tmp_path / "index")
    assert index.digest == open_index(tmp_path / "out", tmp_path / "index").digest
    assert index.notes == []  # no shard was read
    assert pack(root, url, per_shard=4).num_written == 0
    assert read_names([url]) == ["cat", "dog"]


PACK = """
import sys
from webdataset import TarWriter
from vergence.platform.data.shards import pack

def slow(self, sample, write=TarWriter.write):
    if sample["__key__"] == sys.argv[3]:
        print("there", flush=True)
        sys.stdin.read()
    return write(self, sample)

TarWriter.write = slow
pack(sys.argv[1], sys.argv[2], per_shard=3)
"""


def test_a_pack_into_a_store_that_was_killed_goes_on(tmp_path: Path, bucket: Store) -> None:
    root, url = image_folder(tmp_path / "src"), "s3://packed/killed"
    command = [sys.executable, "-c", PACK, str(root), url, "dog/2"]  # in the third of four shards
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.kill()
    there = stored(bucket, url)
    assert sorted(name for name in there if name.endswith(".tar")) == ["train-000000.tar", "train-000001.tar"]
    kept = bucket.stat(f"{url}/train-000000.tar")
    assert pack(root, url, per_shard=3).num_written == 2
    assert bucket.stat(f"{url}/train-000000.tar") == kept
    pack(root, tmp_path / "out", per_shard=3)
    found = stored(bucket, url)
    assert all(found[path.name] == path.read_bytes() for path in (tmp_path / "out").glob("*.tar"))


def test_a_store_is_claimed_by_who_writes_first(
    tmp_path: Path, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked and found nothing; then one is first."""
    url, put = "s3://packed/claimed", Store.put
    first = image_folder(tmp_path / "1")
    second, other = image_folder(tmp_path / "2", each=4), image_folder(tmp_path / "3", ("ant", "bee"))
    looked: list[str] = []

    def late(self: Store, at: str, *arguments: Any) -> str:
        if at.endswith(".json") and not looked:
            looked.append(at)
            pack(first, url)
        return put(self, at, *arguments)

    monkeypatch.setattr(Store, "put", late)
    with pytest.raises(UserError, match=r"claimed/train.pack.json: train was packed from something else"):
        pack(second, url)
    assert looked
    with pytest.raises(UserError, match=r"claimed/classes.json: other classes than more's"):
        pack(other, url, name="more")
    bucket.delete(f"{url}/train.pack.json")
    with pytest.raises(UserError, match=r"claimed: holds train-\*\.tar that were not packed by this command"):
        pack(first, url)
    looked.clear()
    url = "s3://packed/both"
    pack(first, url)  # by two at once
    assert looked
    assert open_index(url, tmp_path / "index").notes == []
    with pytest.raises(UserError, match="a web server takes no files"):
        pack(first, "http://127.0.0.1/x")
