import pickle
import tarfile

import numpy as np
import pytest
import webdataset
from shard_files import png, write_shard

from vergence.platform.data import index as module
from vergence.platform.data.index import Index, expand, open_index
from vergence.platform.errors import UserError

PNG = png(np.zeros((4, 4, 3), np.uint8))


def shard(path, keys, **members):
    return write_shard(path, [(key, {"png": PNG, **members}) for key in keys])


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        shard(tmp_path / f"s/train-{i:06d}.tar", [f"k{i}-{j}" for j in range(3)], cls=b"1")
    shard(tmp_path / "s/val.tar", ["v"])
    return tmp_path / "s"


def names(paths):
    return [path.name for path in paths]


def test_expand_tar_folder_glob_and_brace_range(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    train = [f"train-{i:06d}.tar" for i in range(12)]
    assert names(expand("s")) == [*train, "val.tar"]
    assert names(expand(folder / "val.tar")) == ["val.tar"]
    assert names(expand("s/train-*.tar")) == train
    assert names(expand("s/train-{000002..000010}.tar")) == train[2:11]
    assert names(expand("s/{val,train-000001}.tar")) == [train[1], "val.tar"]
    assert all(path.is_absolute() for path in expand("s"))


@pytest.mark.parametrize("pattern", ["s/test-*.tar", "nothing", "s/train-{000010..000012}.tar"])
def test_expand_names_the_pattern_that_matches_nothing(folder, monkeypatch, pattern):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError) as error:
        expand(pattern)
    assert str(error.value).startswith(f"{pattern}: matches no shard")
    if ".." in pattern:
        assert "train-000012.tar does not exist" in str(error.value)


def test_expand_open_brace():
    with pytest.raises(UserError, match=r"train-\{0: a brace is not closed"):
        expand("train-{0")


def test_expand_folder_without_tars(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar; pack images with `vergence shards pack`"):
        expand(tmp_path)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="gzip-compressed tar"):
        open_index(tmp_path, tmp_path)


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


def test_samples_are_those_of_webdataset(tmp_path):
    path = tmp_path / "w.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for i, name in enumerate(HOSTILE):
            (tmp_path / "data").write_bytes(b"%d" % i)
            file.add(tmp_path / "data", name)
    expected = [
        {key: value for key, value in sample.items() if key not in ("__url__", "__local_path__")}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    index = open_index(path, tmp_path / "cache")
    content = path.read_bytes()
    found = []
    for i in range(len(index)):
        sample = {"__key__": index.key(i)}
        for extension in index.extensions:
            _, [offset], [size] = index.members(extension, np.array([i]))
            if offset >= 0:
                sample[extension] = content[offset : offset + size]
        found.append(sample)
    assert found == expected
    assert len(found) == 8


def test_ids_shards_and_places(folder, tmp_path):
    index = open_index(folder / "train-{000000..000011}.tar", tmp_path / "cache")
    assert len(index) == 36
    assert (index.key(35), index.where(35), index.shard_of(35).name) == (
        "k11-2",
        "train-000011.tar:k11-2",
        "train-000011.tar",
    )
    assert index.image_extension == "png"
    shards, offsets, sizes = index.members("image", np.array([35, 0]))
    assert shards.tolist() == [11, 0]
    for number, offset, size in zip(shards, offsets, sizes):
        assert index.shards[number].read_bytes()[offset : offset + size] == PNG
    assert index.members("json", np.array([0]))[1:] == (np.array([-1]), np.array([-1]))


def test_kind_image_takes_the_image_that_each_sample_has(tmp_path):
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


def test_index_is_reused_until_a_shard_changes(folder, tmp_path, monkeypatch):
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


def test_digest_knows_names_keys_and_order_but_not_the_folder(tmp_path):
    def digest(folder, *shards):
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
        ([], r"the tar holds no images \(no files\)"),
        ([("a", {"txt": b"1"})], r"the tar holds no images \(only \.txt\)"),
        ([("a", {"jpg": b"1", "JPG": b"1"})], r"the sample a has two members \.jpg"),
        ([(f"img.{i}", {"jpg": b"1"}) for i in range(100)], r"100 different extensions, such as \.0\.jpg"),
    ],
)
def test_shard_that_cannot_be_used_is_named(tmp_path, samples, message):
    shard(tmp_path / "s/a.tar", ["fine"])
    write_shard(tmp_path / "s/b.tar", samples)
    with pytest.raises(UserError, match=rf"s/b\.tar: {message}") as error:
        open_index(tmp_path / "s", tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_truncated_shard_is_named(folder, tmp_path):
    path = folder / "train-000007.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"train-000007\.tar: the tar is truncated"):
        open_index(folder, tmp_path / "cache")


def test_sets_larger_than_a_chunk(tmp_path, monkeypatch):
    """Ids, keys and rare extensions across the bounds of chunks, which are parquet row groups."""
    monkeypatch.setattr(module, "CHUNK", 4)
    for i in range(3):
        samples = [
            (f"s{i}-{j}", {"png": PNG} | ({"txt": b"t"} if (i, j) == (2, 0) else {})) for j in range(7)
        ]
        write_shard(tmp_path / f"s/{i}.tar", samples)
    index = open_index(tmp_path / "s", tmp_path / "cache")
    assert [index.key(i) for i in range(21)] == [f"s{i}-{j}" for i in range(3) for j in range(7)]
    assert np.flatnonzero(index.members("txt", np.arange(21))[1] >= 0).tolist() == [14]


def test_ten_million_samples_fit_in_a_gigabyte(tmp_path, monkeypatch):
    count = 200_000
    members = ((f"class/name_{i:08d}.{ext}", i, 1) for i in range(count) for ext in ("cls", "jpg"))
    monkeypatch.setattr(module.tar, "members", lambda path: members)
    (tmp_path / "big.tar").touch()
    table = module.scan([tmp_path / "big.tar"])
    assert table.num_rows == count
    assert table.nbytes / count < 90  # bytes a sample, everything loaded
