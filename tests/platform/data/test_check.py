from pathlib import Path

import numpy as np
import pytest
from shard_files import png, wav, write_shard

from vergence.platform.data.check import check, check_shards
from vergence.platform.data.index import open_index
from vergence.platform.errors import UserError
from vergence.platform.store import name_of

PNG = png(np.full((8, 8, 3), 7, np.uint8))
GOOD = {"png": PNG, "cls": b"3"}


def test_all_good(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [(str(i), GOOD) for i in range(300)])
    assert check(open_index(tmp_path / "a.tar", tmp_path / "cache")) == []


def test_each_kind_of_damage_is_listed(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "s/a.tar",
        [
            ("good", GOOD),
            ("cut", {**GOOD, "png": PNG[:-25]}),
            ("empty", {**GOOD, "png": b""}),
            ("word", {**GOOD, "cls": b"two\nlines"}),
            ("no_class", {"png": PNG}),
            ("no_image", {"cls": b"1"}),
        ],
    )
    write_shard(tmp_path / "s/b.tar", [("fine", GOOD)])
    whole = write_shard(tmp_path / "s/c.tar", [("lost", GOOD)])
    whole.write_bytes(whole.read_bytes()[:1100])
    write_shard(tmp_path / "s/d.tar", [])
    checked = check_shards(tmp_path / "s", tmp_path / "cache")
    assert (checked.num_shards, checked.num_samples) == (4, 7)
    found = [(name_of(shard), key) for shard, key, _ in checked.broken]
    assert found == [
        ("c.tar", None),
        ("d.tar", None),
        *(("a.tar", key) for key in ("cut", "empty", "word", "no_class", "no_image")),
    ]
    reasons = [reason for _, _, reason in checked.broken]
    assert reasons[0].startswith("the tar is truncated")
    assert reasons[3:] == [
        "zero bytes",
        r"the class (.cls) is not one line of at most 200 bytes: two\nlines",
        "no class (.cls)",
        "no image member",
    ]


def test_images_that_end_in_no_sample_are_a_finding(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [(f"frame.{i}", {"png": PNG}) for i in range(5)])
    [finding] = check_shards(path, tmp_path / "cache").broken
    assert finding[:2] == (str(path), None)
    assert finding.reason.startswith("images that end in no sample: second images of a key")
    assert "(4: frame.1.png, frame.2.png, frame.3.png, ...)" in finding.reason


def test_other_views_are_told_and_no_finding(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [(str(i), {"png": PNG, "seg.png": PNG}) for i in range(3)])
    checked = check_shards(tmp_path / "a.tar", tmp_path / "cache")
    assert (checked.broken, checked.notes) == ([], ["images of other views, not used: .seg.png (3)"])


def test_words_are_classes_and_a_mixture_is_a_finding(tmp_path: Path) -> None:
    words = [("a", {**GOOD, "cls": b"cat"}), ("b", {**GOOD, "cls": b"dog"})]
    assert check_shards(write_shard(tmp_path / "w.tar", words), tmp_path / "cache").broken == []
    path = write_shard(tmp_path / "m.tar", [*words, ("c", {**GOOD, "cls": b"7"})])
    [finding] = check_shards(path, tmp_path / "cache").broken
    assert finding.key == "(classes)"
    assert "1 are numbers (7, ...) and 2 are words (cat, ...)" in finding.reason


def test_what_lies_behind_the_first_end_mark_is_checked_too(tmp_path: Path) -> None:
    parts = [write_shard(tmp_path / f"{i}.tar", [(f"{i}-{j}", GOOD) for j in range(5)]) for i in range(2)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert check_shards(joined, tmp_path / "cache") == (1, 10, [], [])


def test_a_set_without_images_is_checked_by_its_other_members(tmp_path: Path) -> None:
    good, cut_short = wav(np.zeros((9, 1), np.int16)), wav(np.zeros((9, 1), np.int16))[:-2]
    samples = [
        ("a", {"wav": good, "cls": b"1"}),
        ("b", {"wav": cut_short, "cls": b"1"}),
        ("c", {"wav": good}),
    ]
    write_shard(tmp_path / "a.tar", [*samples, ("d", {"wav": good, "cls": b"2", "txt": b"\xff"})])
    found = check_shards(tmp_path / "a.tar", tmp_path / "cache").broken
    assert [(each.key, each.reason.partition(":")[0]) for each in found] == [
        ("b", "truncated WAV"),
        ("c", "no class (.cls)"),
        ("d", "text that is no UTF-8"),
    ]


def test_pattern_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matches no shard"):
        check_shards(tmp_path / "x-*.tar", tmp_path / "cache")
