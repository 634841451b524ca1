"""Which shards a pattern names: of this machine, and of stores."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from object_servers import Faults, s3_server, web_server

from vergence.platform.data.expand import expand
from vergence.platform.data.index import open_index
from vergence.platform.errors import UserError
from vergence.platform.store import AT_ONCE, Store, name_of, store_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    for name in ([f"train-{i:06d}.tar" for i in range(12)], ["val.tar"]):
        for file in name:
            (tmp_path / "s" / file).write_text(file)
    return tmp_path / "s"


@pytest.fixture(autouse=True)
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("deep/0.tar", "deep/a/1.tar", "deep/a/b/2.tar", "deep/.hidden/3.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()


def shards(pattern: str | Path) -> list[str]:
    return [name_of(shard.url) for shard in expand(pattern).found]


def test_expand_tar_folder_glob_and_brace_range(folder: Path) -> None:
    train = [f"train-{i:06d}.tar" for i in range(12)]
    assert shards("s") == [*train, "val.tar"]
    assert shards(folder / "val.tar") == ["val.tar"]
    assert shards("s/train-*.tar") == train
    assert shards("s/train-{000002..000010}.tar") == train[2:11]
    assert shards("s/{val,train-000001}.tar") == [train[1], "val.tar"]
    assert expand("s").found[-1] == (
        str(folder / "val.tar"),
        len("val.tar"),
        str((folder / "val.tar").stat().st_mtime_ns),
    )
    assert expand("s").notes == []


@pytest.mark.parametrize("pattern", ["s/test-*.tar", "nothing", "s/train-{000010..000012}.tar"])
def test_expand_names_the_pattern_that_matches_nothing(folder: Path, pattern: str) -> None:
    with pytest.raises(UserError) as error:
        expand(pattern)
    assert str(error.value).startswith(f"{pattern}: matches no shard")
    if ".." in pattern:
        assert "(s/train-000012.tar does not exist)" in str(error.value)
    with pytest.raises(UserError, match=r"\(4 of 6: s/train-000012\.tar, .*, \.\.\. does not exist\)"):
        expand("s/train-{000010..000015}.tar")


def test_expand_folder_without_tars(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "deep/a/1.tar").unlink()
    with pytest.raises(UserError, match=r"holds no \.tar; pack images with `vergence shards pack`"):
        expand(tmp_path / "x")
    with pytest.raises(
        UserError, match=r"tars in folders below \(FOLDER/\*\*/\*\.tar takes them\) \(1: b/2\.tar\)"
    ):
        expand(tmp_path / "deep/a")
    with tarfile.open(tmp_path / "x/a.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="gzip-compressed tar"):
        open_index(tmp_path / "x", tmp_path)


def test_what_else_a_folder_or_glob_names_is_told(folder: Path) -> None:
    for name in ("old.tar.gz", "a.jpg", "more/x.tar", "more/y.tar", "notes.txt", "classes.json", "BIG.TAR"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert shards("s")[0] == "BIG.TAR"
    assert expand("s").notes == [
        "s: left out: tars in folders below (FOLDER/**/*.tar takes them) (2: more/x.tar, more/y.tar), images beside the "
        "tars (1: a.jpg), compressed tars (1: old.tar.gz)"
    ]
    assert expand("deep/*").notes == ["deep/*: left out: folders that match (1: deep/a)"]
    with pytest.raises(UserError, match=r"s/m\*: matches no file, only s/more; give a folder of tars"):
        expand("s/m*")


def test_a_shard_under_two_names_is_taken_once(folder: Path) -> None:
    (folder / "latest.tar").symlink_to("val.tar")
    os.link(folder / "val.tar", folder / "zzz.tar")
    assert shards("s")[-1] == "val.tar"
    assert len(shards("s")) == 13
    assert expand("s").notes == ["s: left out: links to a shard that is taken (2: zzz.tar, latest.tar)"]
    (folder / "linked").mkdir()  # as in the cache of the Hugging Face hub: nothing but links
    (folder / "linked/a.tar").symlink_to("../val.tar")
    assert shards("s/linked") == ["a.tar"]


def test_links_to_nothing_are_named_at_once(folder: Path) -> None:
    for name in ("a.tar", "b.tar"):
        (folder / name).symlink_to("nowhere.tar")
    with pytest.raises(UserError, match=r"s: 2 of 15 shards are links to nothing \(a\.tar, b\.tar\)"):
        expand("s")


def test_a_folder_that_is_no_utf8(folder: Path) -> None:
    latin = folder.parent / b"caf\xe9 [1]".decode("utf-8", "surrogateescape")
    folder.rename(latin)
    assert len(shards(str(latin))) == len(shards(f"{latin}/*.tar")) == len(shards(latin)) == 13


STORED = (
    "a.tar",
    "b.tar",
    "b.tar.idx",
    "classes.json",
    "deep/c.tar",
    "deep/.d/e.tar",
    "deep/f/g.tar",
    ".h.tar",
)


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def environment(faults: Faults) -> Iterator[dict[str, str]]:
    with s3_server("expanded", faults) as environment:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            for name in STORED:
                Store("s3://expanded").put(f"s3://expanded/x/{name}", name.encode())
            for i in range(AT_ONCE + 2):
                Store("s3://expanded").put(f"s3://expanded/many/train-{i:06d}.tar", b"")
        yield environment


@pytest.fixture
def s3(environment: dict[str, str], faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Faults:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    faults.requests.clear()
    return faults


@pytest.mark.parametrize(
    ("pattern", "expected", "requests"),
    [
        ("x", ["a.tar", "b.tar"], 1),
        ("x/", ["a.tar", "b.tar"], 1),
        ("x/*.tar", ["a.tar", "b.tar"], 1),
        ("x/b.tar*", ["b.tar"], 1),
        ("x/**/*.tar", ["a.tar", "b.tar", "c.tar", "g.tar"], 1),
        ("x/*/*.tar", ["c.tar"], 1),
        ("x/.*.tar", [".h.tar"], 1),
        ("x/b.tar", ["b.tar"], 1),
        ("x/{b,a,b}.tar", ["a.tar", "b.tar"], 2),
        ("x/{deep,b.tar}", ["b.tar", "c.tar"], 2),
        ("x/classes.json", ["classes.json"], 2),  # a tar may have any name
        (
            f"many/train-{{000001..{AT_ONCE + 1:06d}}}.tar",
            [f"train-{i + 1:06d}.tar" for i in range(AT_ONCE + 1)],
            1,
        ),
    ],
)
def test_a_url_names_objects_as_a_path_names_files(
    s3: Faults, pattern: str, expected: list[str], requests: int
) -> None:
    found = expand(f"s3://expanded/{pattern}").found
    assert [name_of(shard.url) for shard in found] == expected
    assert len(s3.requests) == requests
    assert all(shard == store_of(shard.url).stat(shard.url) for shard in found[:2])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none", "matches no shard$"),
        ("x/*.zip", "matches no shard$"),
        ("x/{a,n}.tar", r"matches no shard \(s3://expanded/x/n.tar does not exist\)$"),
        ("x/deep/.d/none.tar", "matches no shard$"),
        ("x/{a", "a brace is not closed"),
    ],
)
def test_a_url_that_names_nothing_is_told(s3: Faults, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        expand(f"s3://expanded/{pattern}")
    assert str(caught.value).startswith(f"s3://expanded/{pattern}: ")


def test_what_else_a_folder_of_a_store_holds_is_told(s3: Faults) -> None:
    assert expand("s3://expanded/x").notes == [
        "s3://expanded/x: left out: tars in folders below (FOLDER/**/*.tar takes them) (3: deep/.d/e.tar, deep/c.tar, "
        "deep/f/g.tar)"
    ]
    with pytest.raises(UserError, match=r"s3://expanded: the folder holds no \.tar; pack images"):
        expand("s3://expanded")


def test_objects_come_in_the_order_of_the_same_files(s3: Faults, tmp_path: Path) -> None:
    """So ids and digest are the same."""
    names = ["set/1.tar", "set-2/1.tar", "set/Zebra.tar", "set/ä.tar", "set/a b.tar", "set/a!.tar"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        Store("s3://expanded").put(f"s3://expanded/sorted/{name}", b"")
    local = [shard.url.removeprefix(f"{tmp_path}/") for shard in expand(f"{tmp_path}/set*/*.tar").found]
    stored = expand("s3://expanded/sorted/set*/*.tar").found
    assert [shard.url.removeprefix("s3://expanded/sorted/") for shard in stored] == local
    with web_server(tmp_path) as address:
        served = expand(f"{address}/{{{','.join(quote(name) for name in names)}}}").found
        assert [unquote(shard.url.removeprefix(f"{address}/")) for shard in served] == local


def test_objects_of_a_web_server_are_named_one_by_one(folder: Path) -> None:
    (folder / "two words.tar").touch()
    with web_server(folder) as address:
        assert shards(f"{address}/train-{{000003..000004}}.tar") == ["train-000003.tar", "train-000004.tar"]
        assert shards(f"{address}/two%20words.tar") == ["two words.tar"]
        with pytest.raises(
            UserError, match=r"2 of 3: .*/train-000012.tar, .*/train-000013.tar does not exist"
        ):
            expand(f"{address}/train-{{000011..000013}}.tar")
        for secret in (f"{address}/a.tar?token=hush", address.replace("//", "//me:hush@") + "/a.tar"):
            with pytest.raises(UserError, match="a recipe holds no secret") as caught:
                expand(secret)
            assert "hush" not in str(caught.value)
        for pattern in ("", "/*.tar"):
            with pytest.raises(UserError, match="name the objects"):
                expand(f"{address}{pattern}")
