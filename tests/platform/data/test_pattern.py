import os
import tarfile
from pathlib import Path

import pytest

from vergence.platform.data.index import open_index
from vergence.platform.data.pattern import expand, match
from vergence.platform.errors import UserError


@pytest.fixture(autouse=True)
def _tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "deep/0.tar",
        "deep/a/1.tar",
        "deep/a/b/2.tar",
        "deep/.hidden/3.tar",
        "shards [v1]/train-000000.tar",
        "shards [v1]/{x}/y.tar",
        "shards v/train-000009.tar",
        "one/shards [v1]/z-*.tar",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep/a/b/loop").symlink_to("../..")


def names(pattern: str) -> list[str]:
    return [name for found in match(pattern).values() for name in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("deep/**/*.tar", ["deep/0.tar", "deep/a/1.tar", "deep/a/b/2.tar"]),
        ("**/2.tar", ["deep/a/b/2.tar"]),
        ("deep/**/b/*.tar", ["deep/a/b/2.tar"]),
        ("deep//*.tar", ["deep/0.tar"]),
        ("deep/{0,a/1}.tar", ["deep/0.tar", "deep/a/1.tar"]),
        ("shards [v1]/train-*.tar", ["shards [v1]/train-000000.tar"]),
        ("shards [v1]/train-{000000..000000}.tar", ["shards [v1]/train-000000.tar"]),
        ("shards [v1]/{x}/*.tar", ["shards [v1]/{x}/y.tar"]),
        ("shards [vx]/*.tar", ["shards v/train-000009.tar"]),
        ("shards[ ]v/*.tar", ["shards v/train-000009.tar"]),
        ("*/shards [v1]/*.tar", ["one/shards [v1]/z-*.tar"]),
        ("one/shards [v1]/z-*.tar", ["one/shards [v1]/z-*.tar"]),
        ("nowhere/*.tar", []),
    ],
)
def test_what_exists_is_literal_and_the_rest_is_a_pattern(
    pattern: str, expected: list[str], tmp_path: Path
) -> None:
    assert names(pattern) == expected
    absolute = [f"{tmp_path}/{name}" for name in expected]
    assert names(f"{tmp_path}/{pattern}") == absolute


def test_alternatives_are_kept_apart() -> None:
    assert match("deep/{0,7}.tar") == {"deep/0.tar": ["deep/0.tar"], "deep/7.tar": []}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("deep/**.tar", r"\*\* stands alone between slashes"), ("train-{0", "a brace is not closed")],
)
def test_what_would_match_less_than_was_meant_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match(pattern)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    for name in ([f"train-{i:06d}.tar" for i in range(12)], ["val.tar"]):
        for file in name:
            (tmp_path / "s" / file).write_text(file)
    return tmp_path / "s"


def shards(pattern: str | Path) -> list[str]:
    return [path.name for path in expand(pattern).paths]


def test_expand_tar_folder_glob_and_brace_range(folder: Path) -> None:
    train = [f"train-{i:06d}.tar" for i in range(12)]
    assert shards("s") == [*train, "val.tar"]
    assert shards(folder / "val.tar") == ["val.tar"]
    assert shards("s/train-*.tar") == train
    assert shards("s/train-{000002..000010}.tar") == train[2:11]
    assert shards("s/{val,train-000001}.tar") == [train[1], "val.tar"]
    assert all(path.is_absolute() for path in expand("s").paths)
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
    assert len(expand(str(latin)).paths) == len(expand(f"{latin}/*.tar").paths) == 13
    assert all(isinstance(path, Path) for path in expand(latin).paths)
