import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.data.check import check, check_shards
from vergence.platform.data.index import open_index
from vergence.platform.errors import UserError

PNG = png(np.full((8, 8, 3), 7, np.uint8))
GOOD = {"png": PNG, "cls": b"3"}


def test_all_good(tmp_path):
    write_shard(tmp_path / "a.tar", [(str(i), GOOD) for i in range(300)])
    assert check(open_index(tmp_path / "a.tar", tmp_path / "cache")) == []


def test_each_kind_of_damage_is_listed(tmp_path):
    write_shard(
        tmp_path / "s/a.tar",
        [
            ("good", GOOD),
            ("cut", {**GOOD, "png": PNG[:-25]}),
            ("empty", {**GOOD, "png": b""}),
            ("word", {**GOOD, "cls": b"cat"}),
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
    found = [(shard.name, key) for shard, key, _ in checked.broken]
    assert found == [
        ("c.tar", None),
        ("d.tar", None),
        *(("a.tar", key) for key in ("cut", "empty", "word", "no_class", "no_image")),
    ]
    reasons = [reason for _, _, reason in checked.broken]
    assert reasons[0].startswith("the tar is truncated")
    assert reasons[3:] == ["zero bytes", ".cls is b'cat', no number", "no class (.cls)", "no image member"]


def test_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UserError, match="matches no shard"):
        check_shards(tmp_path / "x-*.tar", tmp_path / "cache")
