"""Pieces on a disk: whole or not there, fetched by one, and the longest unused make room."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vergence.platform.data.node_cache import DIGEST, NodeCache, default_folder

DATA = os.urandom(1000)


def keep(cache: NodeCache, name: str, data: bytes = DATA) -> None:
    claim = cache.claim(name, wait_s=5)
    assert claim is not None
    with claim:
        claim.keep(data)


def read(cache: NodeCache, name: str, size: int = len(DATA)) -> bytes | None:
    file = cache.open(name, size)
    if file is None:
        return None
    with file:
        return file.read()[:-DIGEST]


def test_a_piece_is_what_was_kept(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 10**6)
    assert read(cache, "a") is None
    assert not cache.has("a")
    keep(cache, "a")
    assert read(NodeCache(tmp_path / "cache", 10**6), "a") == DATA
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.piece"]


@pytest.mark.parametrize("damage", ["cut short", "a byte changed", "empty"])
def test_a_damaged_piece_is_not_there(tmp_path: Path, damage: str) -> None:
    cache = NodeCache(tmp_path, 10**6)
    keep(cache, "a")
    assert read(cache, "a") == DATA
    whole = (tmp_path / "a.piece").read_bytes()
    damaged = {"cut short": whole[:-1], "a byte changed": b"?" + whole[1:], "empty": b""}[damage]
    if whole[0] == ord("?"):
        damaged = b"!" + whole[1:]
    (tmp_path / "a.piece").write_bytes(damaged)
    assert read(cache, "a") is None
    assert not cache.has("a")


def test_a_change_is_seen_through_a_file_that_is_open(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 10**6)
    keep(cache, "a")
    with cache.open("a", len(DATA)) as file:
        assert cache.is_whole("a", file, len(DATA))
        (tmp_path / "a.piece").write_bytes(bytes(len(DATA) + DIGEST))
        assert not cache.is_whole("a", file, len(DATA))


def test_one_of_two_fetches_and_the_other_waits(tmp_path: Path) -> None:
    mine, others = NodeCache(tmp_path, 10**6), NodeCache(tmp_path, 10**6)
    claim = mine.claim("a", wait_s=0)
    assert claim is not None
    with claim:
        assert others.claim("a", wait_s=0) is None
        claim.keep(DATA)
    late = others.claim("a", wait_s=5)
    assert late is not None
    with late:
        assert others.has("a")
    assert read(others, "a") == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a.piece"]


HOLD = """
import sys, time
from pathlib import Path
from vergence.platform.data.node_cache import NodeCache

claim = NodeCache(Path(sys.argv[1]), 10**6).claim("a", wait_s=5)
claim.file.write(b"half a piece")
claim.file.flush()
time.sleep(600)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    draft, cache = tmp_path / "a.piece.part", NodeCache(tmp_path, 10**6)
    while not (draft.exists() and draft.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    assert cache.claim("a", wait_s=0) is None
    process.kill()
    process.wait()
    keep(cache, "a")
    assert read(cache, "a") == DATA


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 20 * (len(DATA) + DIGEST))
    for i in range(10):
        keep(cache, str(i))
    for i in range(10, 30):
        assert read(cache, "0") == DATA  # used again and again
        keep(cache, str(i))
        time.sleep(0.002)
    names = {path.stem for path in tmp_path.iterdir()}
    assert len(names) * (len(DATA) + DIGEST) <= cache.limit
    assert {"0", "29", "28", "27"} <= names
    assert "1" not in names


def test_what_others_keep_in_its_folder_stays(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("thesis.tar", "download.part")]
    for path in others:
        path.write_bytes(bytes(10 * len(DATA)))
        os.utime(path, (0, 0))
    (tmp_path / "folder").mkdir()
    cache = NodeCache(tmp_path, 5 * len(DATA))
    for i in range(10):
        keep(cache, str(i))
    assert all(path.exists() for path in others)
    assert cache.has("9")
    assert not cache.has("0")


def test_a_folder_that_is_wiped_is_made_again(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 10**6)
    claim = cache.claim("a", wait_s=5)
    assert claim is not None
    shutil.rmtree(cache.folder)
    with claim:
        claim.keep(DATA)
    assert not cache.has("a")
    keep(cache, "a")
    assert read(cache, "a") == DATA


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert default_folder().stat().st_mode & 0o777 == 0o700
    default_folder().rmdir()
    (tmp_path / f"vergence-cache-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="is somebody else's"):
        default_folder()


def test_a_disk_that_is_full_leaves_no_half_piece(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 10**6)
    claim = cache.claim("a", wait_s=5)
    assert claim is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, claim.file.fileno())
    os.close(full)
    with claim, pytest.raises(OSError, match=r"\[Errno"):
        claim.keep(DATA)
    assert not cache.has("a")
