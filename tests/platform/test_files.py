from collections.abc import Callable
from pathlib import Path

import pytest

from vergence.platform.files import write_atomic


def test_a_text_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, disk_events: list[tuple[str, str]]
) -> None:
    write_atomic(tmp_path / "facts.json", "new")
    (synced, draft), renamed, folder_synced = disk_events
    assert (synced, renamed) == ("synced", ("renamed", draft))
    assert folder_synced == ("synced", str(tmp_path))
    assert (tmp_path / "facts.json").read_text() == "new"


def test_a_full_disk_leaves_the_old_text_and_nothing_else(
    tmp_path: Path, small_disk: Callable[[Path], Path]
) -> None:
    disk = small_disk(tmp_path / "disk")
    write_atomic(disk / "facts.json", "old")
    with pytest.raises(OSError, match="No space"):
        write_atomic(disk / "facts.json", "x" * (2 << 20))
    assert (disk / "facts.json").read_text() == "old"
    assert [path.name for path in disk.iterdir()] == ["facts.json"]
