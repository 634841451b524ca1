import os

import pytest

from vergence.platform.files import write_atomic


def test_a_text_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    seen, fsync, replace = [], os.fsync, os.replace

    def note_fsync(descriptor):
        fsync(descriptor)
        seen.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def note_replace(old, new):
        assert seen == [str(old)]
        replace(old, new)
        seen.append("replaced")

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_atomic(tmp_path / "facts.json", "new")
    assert seen[1:] == ["replaced", str(tmp_path)]
    assert (tmp_path / "facts.json").read_text() == "new"


def test_a_full_disk_leaves_the_old_text_and_nothing_else(tmp_path, small_disk):
    disk = small_disk(tmp_path / "disk")
    write_atomic(disk / "facts.json", "old")
    with pytest.raises(OSError, match="No space"):
        write_atomic(disk / "facts.json", "x" * (2 << 20))
    assert (disk / "facts.json").read_text() == "old"
    assert [path.name for path in disk.iterdir()] == ["facts.json"]
