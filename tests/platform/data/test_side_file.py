"""What stands beside a shard: the contents, for that version of the shard only."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.data import contents as module
from vergence.platform.data.contents import Contents, read_contents
from vergence.platform.data.side_file import packed, unpacked
from vergence.platform.store import Object

PNG = png(np.zeros((4, 4, 3), np.uint8))
SHARD = Object("s3://b/x.tar", 4096, '"v1"')


@pytest.fixture
def contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contents:
    """Three chunks: without a class, with some, with a member that the others lack; and an image that is lost."""
    monkeypatch.setattr(module, "CHUNK", 3)
    samples = [(str(i), {"png": PNG} | ({"cls": b"%d" % i} if i == 4 else {})) for i in range(7)]
    samples += [("8", {"png": PNG, "cls": b"", "a.offset": b"1"}), (".h", {"png": PNG})]
    data = write_shard(tmp_path / "x.tar", samples).read_bytes()
    return read_contents(io.BytesIO(data), len(data), "x.tar")


def test_contents_come_back_as_they_were(contents: Contents) -> None:
    found = unpacked(packed(contents, SHARD), SHARD)
    assert found is not None
    assert [{name: column.to_pylist() for name, column in chunk.items()} for chunk in found.chunks] == [
        {name: column.to_pylist() for name, column in chunk.items()} for chunk in contents.chunks
    ]
    assert sorted(contents.chunks[0]) == ["key", "png.offset", "png.size"]
    assert found.lost.lines() == contents.lost.lines() == ["left out: hidden names (1: .h.png)"]
    digests = [hashlib.sha256(), hashlib.sha256()]
    for each, sha256 in zip((found, contents), digests):
        each.digest("x.tar", sha256)
    assert digests[0].digest() == digests[1].digest()
    assert packed(found, SHARD) == packed(contents, SHARD)


def test_contents_of_another_version_size_or_schema_are_none(
    contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(contents, SHARD)
    assert unpacked(data, SHARD._replace(url="s3://c/y.tar")) is not None  # a copy of both
    assert unpacked(data, SHARD._replace(version='"v2"')) is None
    assert unpacked(data, SHARD._replace(size=4097)) is None
    monkeypatch.setattr("vergence.platform.data.side_file.SCHEMA", 2)
    assert unpacked(data, SHARD) is None


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_half_a_file_and_another_programs_are_none(contents: Contents, share: float) -> None:
    data = packed(contents, SHARD)
    assert unpacked(data[: int(len(data) * share)], SHARD) is None
    assert unpacked(b"[1, 2]" * 100, SHARD) is None


def test_a_shard_without_samples_has_contents_too(tmp_path: Path) -> None:
    data = write_shard(tmp_path / "x.tar", []).read_bytes()
    found = unpacked(packed(read_contents(io.BytesIO(data), len(data), "x"), SHARD), SHARD)
    assert found is not None
    assert found.chunks == []
