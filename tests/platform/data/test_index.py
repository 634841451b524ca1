import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_files import as_webdataset_reads, png, write_shard

from vergence.platform.data import contents, scan, tar
from vergence.platform.data import index as module
from vergence.platform.data.expand import expand
from vergence.platform.data.index import Index, open_index
from vergence.platform.errors import UserError
from vergence.platform.store import name_of

PNG = png(np.zeros((4, 4, 3), np.uint8))


def shard(path: Path, keys: Iterable[str], **members: bytes) -> Path:
    return write_shard(path, [(key, {"png": PNG, **members}) for key in keys])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        shard(tmp_path / f"s/train-{i:06d}.tar", [f"k{i}-{j}" for j in range(3)], cls=b"1")
    shard(tmp_path / "s/val.tar", ["v"])
    return tmp_path / "s"


HOSTILE = [
    "a/b/img.jpg",
    "a/b/img.CLS",
    "a/b/img.seg.png",
    "a/c/img.jpg",
    "ünï/日本.png",
    "ünï/日本.cls",
    "no_extension",
    "d.d/x.webp",
    "x" * 120 + ".jpg",
    "__meta__/note.json",
    "__key__",
    "dup.jpg",
    "other.jpg",
    "dup.jpg",
]


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for i, name in enumerate(HOSTILE):
            (tmp_path / "data").write_bytes(b"%d" % i)
            file.add(tmp_path / "data", name)
    expected = as_webdataset_reads(path)
    index = open_index(path, tmp_path / "cache")
    content = path.read_bytes()
    found = []
    for i in range(len(index)):
        sample: dict[str, Any] = {"__key__": index.key(i)}
        for extension in index.extensions:
            _, [offset], [size] = index.members(extension, np.array([i]))
            if offset >= 0:
                sample[extension] = content[offset : offset + size]
        found.append(sample)
    assert found == expected
    assert len(found) == 8


def test_ids_shards_and_places(folder: Path, tmp_path: Path) -> None:
    index = open_index(folder / "train-{000000..000011}.tar", tmp_path / "cache")
    assert len(index) == 36
    assert (index.key(35), index.where(35), name_of(index.shard_of(35))) == (
        "k11-2",
        "train-000011.tar:k11-2",
        "train-000011.tar",
    )
    assert index.image_extension == "png"
    shards, offsets, sizes = index.members("image", np.array([35, 0]))
    assert shards.tolist() == [11, 0]
    for number, offset, size in zip(shards, offsets, sizes):
        assert Path(index.shards[number]).read_bytes()[offset : offset + size] == PNG
    assert index.members("json", np.array([0]))[1:] == (np.array([-1]), np.array([-1]))


def test_kind_image_takes_the_image_that_each_sample_has(tmp_path: Path) -> None:
    samples = [
        ("a", {"jpg": b"1"}),
        ("b", {"mask.png": b"2", "png": b"33"}),
        ("c", {"cls": b"4", "mask.png": b"5"}),
    ]
    index = open_index(write_shard(tmp_path / "m.tar", samples), tmp_path / "cache")
    assert index.members("image", np.arange(3))[2].tolist() == [1, 2, -1]
    only_views = [("a", {"left.jpg": b"1", "right.jpg": b"22"})]
    index = open_index(write_shard(tmp_path / "v.tar", only_views), tmp_path / "cache")
    assert index.members("image", np.arange(1))[2].tolist() == [1]


def test_index_is_reused_until_a_shard_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = open_index(folder, cache)
    monkeypatch.setattr(module, "scan", lambda *_: pytest.fail("scanned again"))
    again = open_index(str(folder / "*.tar"), cache)
    assert (again.path, again.digest) == (first.path, first.digest)
    loaded = pickle.loads(pickle.dumps(Index(first.path)))
    assert (loaded.digest, loaded.shards, loaded.key(3)) == (first.digest, first.shards, "k1-0")
    monkeypatch.undo()
    shard(folder / "val.tar", ["other"])
    changed = open_index(folder, cache)
    assert changed.digest != first.digest
    assert Index(first.path).digest == first.digest  # a run that began with it goes on with it
    changed.path.write_bytes(b"damaged cache")
    assert len(open_index(folder, cache)) == 37
    assert {path.suffix for path in cache.iterdir()} == {".parquet"}


def test_digest_knows_names_keys_and_order_but_not_the_folder(tmp_path: Path) -> None:
    def digest(folder: str, *shards: tuple[str, str]) -> str:
        for name, keys in shards:
            shard(tmp_path / folder / name, keys)
        return open_index(tmp_path / folder, tmp_path / "cache").digest

    one = digest("1", ("a.tar", "xy"), ("b.tar", "z"))
    assert digest("2", ("a.tar", "xy"), ("b.tar", "z")) == one
    others = [
        digest("3", ("a.tar", "x"), ("b.tar", "yz")),
        digest("4", ("a.tar", "yx"), ("b.tar", "z")),
        digest("5", ("a.tar", "xy"), ("c.tar", "z")),
    ]
    assert len({one, *others}) == 4


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {"jpg": b"1", "JPG": b"1"})], r"the sample a has two members \.jpg"),
        ([(f"img.{i}", {"jpg": b"1"}) for i in range(100)], r"100 different extensions, such as \.0\.jpg"),
    ],
)
def test_shard_that_cannot_be_used_is_named(
    tmp_path: Path, samples: list[tuple[str, dict[str, bytes]]], message: str
) -> None:
    shard(tmp_path / "s/a.tar", ["fine"])
    write_shard(tmp_path / "s/b.tar", samples)
    with pytest.raises(UserError, match=rf"s/b\.tar: {message}") as error:
        open_index(tmp_path / "s", tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_all_shards_that_cannot_be_used_are_named_at_once(folder: Path, tmp_path: Path) -> None:
    for i in (1, 5):
        (folder / f"train-{i:06d}.tar").write_bytes(b"")
    (folder / "train-000007.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"^3 of 13 shards cannot be used: .*") as error:
        open_index(folder, tmp_path / "cache")
    assert str(error.value).count("the file is empty") == 2
    assert "train-000007.tar: no tar header at byte 0" in str(error.value)
    for i in range(12):
        (folder / f"train-{i:06d}.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"12 of 13 shards .*; and 7 more, see `vergence shards check`$"):
        open_index(folder, tmp_path / "cache")


def test_shards_without_images_among_others_are_skipped_and_told(folder: Path, tmp_path: Path) -> None:
    plain = open_index(folder, tmp_path / "cache")
    write_shard(folder / "a-empty.tar", [])
    write_shard(folder / "train-000003b.tar", [("a", {"txt": b"1"}), ("b", {"json": b"{}"})])
    index = open_index(folder, tmp_path / "cache")
    assert index.notes[0] == "shards skipped: without images, of 15 (2: a-empty.tar, train-000003b.tar)"
    assert (index.digest, index.shards) == (plain.digest, plain.shards)
    assert open_index(folder, tmp_path / "cache").notes == index.notes  # from the cache too
    for path in folder.glob("*.tar"):
        write_shard(path, [("a", {"txt": b"1"})])
    with pytest.raises(UserError, match=r"15 of 15 shards cannot be used: .*holds no images \(only \.txt\)"):
        open_index(folder, tmp_path / "cache")


def test_labels_come_from_the_index(tmp_path: Path) -> None:
    members = [{"cls": b"3"}, {"cls": b"12\n"}, {}, {"cls": b"-1"}]
    write_shard(tmp_path / "a.tar", [(str(i), {"png": PNG, **more}) for i, more in enumerate(members)])
    index = open_index(tmp_path / "a.tar", tmp_path / "cache")
    assert index.labels(np.array([3, 1, 0, 2, 0])).tolist() == [-1, 12, 3, -1, 3]
    assert index.classes is None
    assert index.notes == ["2 of 4 samples have no class (.cls)"]
    assert pickle.loads(pickle.dumps(index)).labels(np.array([1])).tolist() == [12]
    shard(tmp_path / "none.tar", ["a"])
    assert open_index(tmp_path / "none.tar", tmp_path / "cache").labels(np.array([0])) is None


def test_words_are_classes_numbered_over_all_shards(tmp_path: Path) -> None:
    for name, words in (
        ("a.tar", [b"dog", b"cat"]),
        ("b.tar", [b"ant", b"cat\r\n"]),
        ("c.tar", [b"\xef\xbb\xbfdog"]),
    ):
        samples = [(f"{name[0]}{i}", {"png": PNG, "cls": word}) for i, word in enumerate(words)]
        write_shard(tmp_path / "s" / name, samples)
    index = open_index(tmp_path / "s", tmp_path / "cache")
    assert index.classes == ["ant", "cat", "dog"]
    assert index.labels(np.arange(5)).tolist() == [2, 1, 0, 1, 2]
    assert index.notes == []


def test_a_state_folder_that_is_no_utf8(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape")
    for index in (open_index(folder, cache), open_index(folder, cache)):
        assert index.key(3) == "k1-0"
        assert index.path.parent == cache


def test_truncated_shard_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "train-000007.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"train-000007\.tar: the tar is truncated"):
        open_index(folder, tmp_path / "cache")


def test_sets_larger_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, keys and rare extensions across the bounds of chunks, which are parquet row groups."""
    monkeypatch.setattr(contents, "CHUNK", 4)
    monkeypatch.setattr(module, "CHUNK", 4)
    for i in range(3):
        samples = [
            (f"s{i}-{j}", {"png": PNG} | ({"txt": b"t"} if (i, j) == (2, 0) else {})) for j in range(7)
        ]
        write_shard(tmp_path / f"s/{i}.tar", samples)
    index = open_index(tmp_path / "s", tmp_path / "cache")
    assert [index.key(i) for i in range(21)] == [f"s{i}-{j}" for i in range(3) for j in range(7)]
    assert np.flatnonzero(index.members("txt", np.arange(21))[1] >= 0).tolist() == [14]


def test_ten_million_samples_fit_in_a_gigabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 200_000
    members = ((f"class/name_{i:08d}.{ext}", i, 1) for i in range(count) for ext in ("cls", "jpg"))
    monkeypatch.setattr(tar, "members", lambda file, size, shard: members)
    (tmp_path / "big.tar").touch()
    table = scan.scan(expand(tmp_path / "big.tar").found).table
    assert table.num_rows == count
    assert table.nbytes / count < 90  # bytes a sample, everything loaded
