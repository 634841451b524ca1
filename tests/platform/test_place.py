"""A folder in which files appear when they are whole."""

from pathlib import Path

import pytest

from vergence.platform.place import place_of


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, disk_events: list[tuple[str, str]]
) -> None:
    place = place_of(tmp_path / "out")
    with place.writing("a.parquet") as draft:
        draft.write_bytes(b"x")
        assert place.names() == [draft.name]
    assert place.names() == ["a.parquet"]
    assert disk_events[:2] == [("synced", str(draft)), ("renamed", str(draft))]


def test_half_a_file_leaves_nothing(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    with pytest.raises(ZeroDivisionError), place.writing("a.parquet"):
        raise ZeroDivisionError
    assert place.names() == []
    assert place.tail("a.parquet", 8) is None
