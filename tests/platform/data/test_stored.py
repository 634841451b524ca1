"""Indexes of shards in stores: from the files beside them, or read once; the same as of the same files."""

import gzip
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from object_servers import Faults, s3_server, web_server
from shard_files import png, write_shard

from vergence.platform.data.contents import read_contents
from vergence.platform.data.expand import SIDE
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.stored import STREAMS, Streamed
from vergence.platform.errors import UserError
from vergence.platform.store import NotThere, Store, name_of

PNG = png(np.zeros((4, 4, 3), np.uint8))
BUCKET = "s3://indexed"
numbers = count()


class Server(Faults):
    """closed: it refuses to be written to."""

    closed = False

    def draw(self, request: str) -> str | None:
        drawn = super().draw(request)
        return "refused" if self.closed and request.startswith("PUT") else drawn

    def since(self) -> tuple[list[str], list[str], list[str]]:
        """Names of the shards that were read since the last call, of the side files that were, and of what was put."""
        asked = [request.split(" ") for request in self.requests]
        self.requests.clear()
        read = sorted(name_of(path) for method, path in asked if method == "GET" and "?" not in path)
        put = sorted(name_of(path) for method, path in asked if method == "PUT")
        sides = [name for name in read if name.endswith(SIDE)]
        return [name for name in read if not name.endswith(SIDE)], sides, put


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, dict[str, str]]]:
    server = Server()
    with s3_server("indexed", server) as environment:
        yield server, environment


@pytest.fixture
def server(served: tuple[Server, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in served[1].items():
        monkeypatch.setenv(name, value)
    served[0].closed, served[0].latency_s = False, 0
    return served[0]


@pytest.fixture
def upload(server: Server) -> Callable[[Path], str]:
    """Puts the tars of a folder into a store; their URL."""

    def put(folder: Path) -> str:
        url = f"{BUCKET}/{next(numbers)}"
        for path in folder.glob("*.tar"):
            Store(BUCKET).put(f"{url}/{path.name}", path.read_bytes())
        server.requests.clear()
        return url

    return put


def small(folder: Path, num_shards: int = 3) -> Path:
    for i in range(num_shards):
        write_shard(folder / f"t-{i}.tar", [(f"{i}-{j}", {"png": PNG, "cls": b"%d" % j}) for j in range(4)])
    return folder


def awkward(folder: Path) -> Path:
    """Words as classes, a shard without images, rare members, images that are lost."""
    write_shard(folder / "a.tar", [("a", {"png": PNG, "cls": b"dog"}), ("b", {"png": PNG, "txt": b"t"})])
    write_shard(folder / "b.tar", [("s", {"wav": b"RIFF"})])
    write_shard(
        folder / "c.tar", [("c.1", {"png": PNG}), ("c.2", {"png": PNG, "cls": b"ant"}), (".h", {"png": PNG})]
    )
    return folder


def told(index: Index) -> Any:
    ids = np.arange(len(index))
    labels = index.labels(ids)
    return (
        index.digest,
        index.extensions,
        index.classes,
        [name_of(shard) for shard in index.shards],
        index.shard_sizes,
        [index.key(i) for i in range(len(index))],
        [array.tolist() for array in index.members("image", ids)],
        labels if labels is None else labels.tolist(),
    )


@pytest.mark.parametrize("make", [small, awkward])
def test_an_index_is_the_same_of_files_of_objects_and_of_what_stands_beside_them(
    tmp_path: Path, upload: Callable[[Path], str], server: Server, make: Callable[[Path], Path]
) -> None:
    names = sorted(path.name for path in make(tmp_path / "s").glob("*.tar"))
    sides = [name + SIDE for name in names]
    local = open_index(tmp_path / "s", tmp_path / "local")
    url = upload(tmp_path / "s")
    streamed = open_index(url, tmp_path / "1")
    assert told(streamed) == told(local)
    assert server.since() == (names, sides, sides)
    assert streamed.notes == [
        "3 shards were read once, from end to end; what they hold is kept beside them (NAME.tar.idx)",
        *local.notes,
    ]
    assert not (tmp_path / "1/shards").exists()
    beside = open_index(url, tmp_path / "2")
    assert told(beside) == told(local)
    assert beside.notes == local.notes
    assert server.since() == ([], sides, [])
    assert open_index(f"{url}/*.tar", tmp_path / "2").path == beside.path
    assert server.since() == ([], [], [])


def test_real_pictures_have_the_same_digest_in_a_store(
    shared: Path, tmp_path: Path, upload: Callable[[Path], str]
) -> None:
    table = pq.read_table(next((shared / "data/cifar10").glob("test-*.parquet"))).slice(0, 600)
    for i in range(3):
        rows = table.slice(200 * i, 200).to_pylist()
        samples = [
            (f"{j:04d}", {"png": row["img"]["bytes"], "cls": b"%d" % row["label"]})
            for j, row in enumerate(rows)
        ]
        write_shard(tmp_path / f"s/test-{i:06d}.tar", samples)
    url, local = upload(tmp_path / "s"), open_index(tmp_path / "s", tmp_path / "local")
    assert told(open_index(url, tmp_path / "1")) == told(open_index(url, tmp_path / "2")) == told(local)


OPEN = """
import sys
from pathlib import Path
from vergence.platform.data.index import open_index
open_index(sys.argv[1], Path(sys.argv[2]))
"""


def test_whoever_is_killed_half_way_goes_on_with_the_rest(
    tmp_path: Path, upload: Callable[[Path], str], server: Server
) -> None:
    url = upload(small(tmp_path / "s", 4 * STREAMS))
    server.latency_s = 0.1
    with subprocess.Popen([sys.executable, "-c", OPEN, url, str(tmp_path / "1")]) as process:
        while sum(request.startswith("PUT") for request in list(server.requests)) < STREAMS + 1:
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    server.latency_s = 0
    time.sleep(0.3)  # what it had sent arrives
    there = {name_of(each.url) for each in Store(BUCKET).list(url)}
    rest = sorted(name for name in there if name.endswith(".tar") and name + SIDE not in there)
    assert STREAMS <= len(rest) < 3 * STREAMS
    server.since()
    assert open_index(url, tmp_path / "1").digest == open_index(tmp_path / "s", tmp_path / "local").digest
    assert server.since()[0] == rest


def test_a_shard_that_has_changed_is_read_again_and_no_other(
    tmp_path: Path, upload: Callable[[Path], str], server: Server
) -> None:
    url = upload(small(tmp_path / "s"))
    first = open_index(url, tmp_path / "1")
    size = (tmp_path / "s/t-1.tar").stat().st_size
    write_shard(tmp_path / "s/t-1.tar", [(f"x-{j}", {"png": PNG, "cls": b"%d" % j}) for j in range(4)])
    assert (tmp_path / "s/t-1.tar").stat().st_size == size
    Store(BUCKET).put(f"{url}/t-1.tar", tmp_path / "s/t-1.tar")
    server.since()
    second = open_index(url, tmp_path / "1")
    assert server.since()[::2] == (["t-1.tar"], ["t-1.tar.idx"])
    assert second.digest == open_index(tmp_path / "s", tmp_path / "local").digest != first.digest
    assert second.shard_versions[::2] == first.shard_versions[::2]
    assert second.shard_versions[1] != first.shard_versions[1]


def test_where_nothing_may_be_written_it_is_kept_here(
    tmp_path: Path, upload: Callable[[Path], str], server: Server
) -> None:
    url, local = upload(small(tmp_path / "s")), open_index(tmp_path / "s", tmp_path / "local")
    server.closed = True
    index = open_index(url, tmp_path / "1")
    assert told(index) == told(local)
    [note] = index.notes
    assert f"kept in {tmp_path}/1/shards (the store refuses" in note
    index.path.unlink()
    server.since()
    assert told(open_index(url, tmp_path / "1")) == told(local)
    assert server.since()[0] == []
    server.closed = False  # somebody may write after all
    open_index(url, tmp_path / "1", anew=True)
    assert server.since()[::2] == ([], [f"t-{i}.tar.idx" for i in range(3)])
    open_index(url, tmp_path / "2")
    assert server.since()[0] == []


def test_shards_of_a_web_server(tmp_path: Path) -> None:
    faults = Server()
    small(tmp_path / "s")
    with web_server(tmp_path / "s", faults) as address:
        url = f"{address}/t-{{0..2}}.tar"
        index = open_index(url, tmp_path / "1")
        assert told(index) == told(open_index(tmp_path / "s", tmp_path / "local"))
        assert faults.since()[::2] == ([f"t-{i}.tar" for i in range(3)], [])
        index.path.unlink()
        open_index(url, tmp_path / "1")
        assert faults.since()[0] == []


def test_a_damaged_file_beside_a_shard_is_made_again(
    tmp_path: Path, upload: Callable[[Path], str], server: Server
) -> None:
    url = upload(small(tmp_path / "s"))
    first = open_index(url, tmp_path / "1")
    Store(BUCKET).put(f"{url}/t-2.tar{SIDE}", b"no such thing")
    server.since()
    assert open_index(url, tmp_path / "2").digest == first.digest
    assert server.since()[::2] == (["t-2.tar"], ["t-2.tar.idx"])


def test_shards_that_cannot_be_used_are_named_by_url(
    tmp_path: Path, upload: Callable[[Path], str], server: Server
) -> None:
    small(tmp_path / "s")
    whole = (tmp_path / "s/t-0.tar").read_bytes()
    (tmp_path / "s/t-1.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "s/t-2.tar").write_bytes(whole[:1100])
    (tmp_path / "s/t-3.tar").write_bytes(b"")
    url = upload(tmp_path / "s")
    with pytest.raises(UserError) as caught:
        open_index(url, tmp_path / "1")
    text = str(caught.value)
    assert text.startswith(f"3 of 4 shards cannot be used: {url}/t-1.tar: a gzip-compressed tar")
    assert f"{url}/t-2.tar: the tar is truncated" in text
    assert f"{url}/t-3.tar: the file is empty" in text
    assert server.since()[2] == ["t-0.tar.idx"]
    with pytest.raises(NotThere):
        Store(BUCKET).stat(f"{url}/t-2.tar{SIDE}")


@pytest.mark.parametrize("piece", [700, 1 << 20])
def test_a_stream_is_walked_like_a_file(tmp_path: Path, piece: int) -> None:
    """Joined tars with long stretches of zeros between, in pieces that end anywhere."""
    parts = [
        [("a", {"png": PNG, "cls": b"1"}), ("LICENSE", {"": PNG}), ("b", {"png": PNG})],
        [("c", {"npy": bytes(3 << 20), "cls": b"2"}), ("d", {"cls": b"x" * 900})],
    ]
    data = bytes(5 << 18).join(write_shard(tmp_path / "x.tar", part).read_bytes() for part in parts)
    pieces = (data[i : i + piece] for i in range(0, len(data), piece))
    with io.BufferedReader(Streamed(pieces)) as file:
        streamed = read_contents(file, len(data), "x")
    local = read_contents(io.BytesIO(data), len(data), "x")
    assert [chunk["key"].to_pylist() for chunk in streamed.chunks] == [["a", "LICENSE", "b", "c", "d"]]
    assert streamed.chunks == local.chunks
