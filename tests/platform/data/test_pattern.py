from pathlib import Path

import pytest

from vergence.platform.data.pattern import match
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
