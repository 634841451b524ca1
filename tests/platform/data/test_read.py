import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.data import read
from vergence.platform.data.decode import BadSample
from vergence.platform.data.index import Index, open_index
from vergence.platform.data.read import Reader
from vergence.platform.errors import VergenceError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 6, 3), np.uint8)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    for number in range(3):
        ids = range(number * 10, number * 10 + 10)
        samples = [(f"k{i}", {"cls": b"%d\n" % (i % 4), "png": png(IMAGES[i])}) for i in ids]
        write_shard(tmp_path / f"s/{number}.tar", samples)
    return open_index(tmp_path / "s", tmp_path / "cache")


def test_images_and_labels_come_in_the_order_of_the_ids(index: Index) -> None:
    ids = np.array([29, 0, 13, 13, 7, 28])
    reader = Reader(index)
    np.testing.assert_array_equal(np.array(reader.images(ids)), IMAGES[ids])
    assert index.labels(ids).tolist() == (ids % 4).tolist()
    assert reader.raw(ids[:2], "png") == [png(IMAGES[29]), png(IMAGES[0])]
    assert reader.raw(ids[:2], "json") == [None, None]
    assert reader.images(np.array([], np.int64)) == []


def test_bad_samples_stand_in_their_places(tmp_path: Path) -> None:
    good = png(IMAGES[0])
    samples = [
        ("a", {"png": good}),
        ("b", {"png": b""}),
        ("c", {"png": good[:-30]}),
        ("d", {"txt": b"no image"}),
    ]
    reader = Reader(open_index(write_shard(tmp_path / "b.tar", samples), tmp_path / "cache"))
    images = reader.images(np.arange(4))
    assert [isinstance(image, BadSample) for image in images] == [False, True, True, True]
    assert str(images[1]) == "zero bytes"
    assert str(images[3]) == "no image member"
    limited = Reader(reader.index, max_pixels=29)
    assert isinstance(limited.images(np.array([0]))[0], BadSample)


def test_a_sample_is_what_is_wanted_of_it_or_the_first_reason_why_it_is_bad(tmp_path: Path) -> None:
    members = [
        {"png": png(IMAGES[0]), "txt": b"zero", "json": b"[0]"},
        {"png": b"", "txt": b"one", "json": b"[1]"},
        {"png": png(IMAGES[2]), "txt": b"\xff", "json": b"["},
        {"png": png(IMAGES[3]), "txt": b"three"},
    ]
    shard = write_shard(tmp_path / "a.tar", ((f"{i}", each) for i, each in enumerate(members)))
    reader, ids = Reader(open_index(shard, tmp_path / "cache")), np.array([3, 2, 1, 0])

    def told(pictures: bool, *fields: str) -> list[str]:
        found = reader.samples(ids, pictures, fields)
        return [str(each).partition(":")[0] if isinstance(each, BadSample) else "good" for each in found]

    assert told(True) == ["good", "good", "zero bytes", "good"]
    assert told(True, "text", "label") == ["good", "text that is no UTF-8", "zero bytes", "good"]
    assert told(False, "text") == ["good", "text that is no UTF-8", "good", "good"]
    assert told(False, "json", "text") == ["no json member (.json)", "no JSON", "good", "good"]
    (sample,) = reader.samples(np.array([0]), True, ("text",))
    assert (sample.picture == IMAGES[0]).all()
    assert sample.members["text"][""].tobytes() == b"zero"
    assert reader.samples(np.array([0]), False, ())[0].picture is None


def test_no_more_files_are_open_than_the_bound(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "OPEN_FILES", 2)
    reader, before = Reader(index), len(os.listdir("/proc/self/fd"))
    for ids in (np.arange(30), np.arange(30)[::-1], np.array([0, 29])):
        np.testing.assert_array_equal(np.array(reader.images(ids)), IMAGES[ids])
        assert len(os.listdir("/proc/self/fd")) == before + 2


def test_storage_error_is_retried_and_then_raised(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 2

    def flaky(*args: int, pread: Callable[..., bytes] = os.pread) -> bytes:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(5, "input/output error")
        return pread(*args)

    monkeypatch.setattr(read, "PAUSE_S", 0)
    monkeypatch.setattr(os, "pread", flaky)
    assert Reader(index).images(np.array([4]))[0].tolist() == IMAGES[4].tolist()
    failures = 3
    with pytest.raises(OSError, match="input/output"):
        Reader(index).images(np.array([4]))


@pytest.mark.parametrize("size", [600, 1 << 20])
def test_shard_that_changed_is_an_error_not_a_bad_sample(index: Index, size: int) -> None:
    opened = Reader(index)
    opened.images(np.array([19]))
    os.truncate(index.shards[1], size)
    with pytest.raises(VergenceError, match=rf"1\.tar: has {size:,} bytes .* changed during the run"):
        Reader(index).images(np.array([19]))
    if size == 600:
        with pytest.raises(VergenceError, match=r"1\.tar: shorter than when it was indexed"):
            opened.images(np.array([19]))


def test_shard_that_is_gone_is_an_error_of_the_run(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "PAUSE_S", 0)
    os.unlink(index.shards[1])
    with pytest.raises(VergenceError, match=r"1\.tar: is gone"):
        Reader(index).images(np.array([19]))
