import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vergence.platform.data import tar


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    with path.open("rb") as file:
        yield from tar.members(file, path.stat().st_size, str(path))


NAMES = [
    "plain.jpg",
    "folder/nested/a.png",
    "ünïcödé/日本.cls",
    "d" * 60 + "/" + "e" * 60 + ".jpg",  # ustar prefix
    "x" * 180 + ".jpg",  # more than ustar holds
    "y" * 90 + "ü" * 90 + ".jpg",
]


def write(path: Path, names: Iterable[str] = NAMES, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as file:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = i * 300
            file.addfile(info, io.BytesIO(bytes([i]) * info.size))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "plain.jpg"
        file.addfile(link)
    return path


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_those_of_tarfile(tmp_path: Path, format: int) -> None:
    path = write(tmp_path / "a.tar", format=format)
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file.getmembers() if m.isreg()]
    assert [name for name, _, _ in expected] == NAMES
    found = list(members(path))
    assert found[:-1] == expected
    assert (found[-1][0], found[-1][2]) == ("link.jpg", tar.LINK)


def test_members_of_the_tar_command(tmp_path: Path) -> None:
    for name in ("a.jpg", "z" * 150 + ".jpg"):
        (tmp_path / name).write_bytes(b"12345")
    subprocess.run(
        ["tar", "-cf", "b.tar", *(p.name for p in tmp_path.glob("*.jpg"))], cwd=tmp_path, check=True
    )
    with tarfile.open(tmp_path / "b.tar") as file:
        expected = [(m.name, m.offset_data, m.size) for m in file.getmembers()]
    assert list(members(tmp_path / "b.tar")) == expected


def test_pax_global_header_and_size_record_are_read(tmp_path: Path) -> None:
    path = tmp_path / "g.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as file:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 5, {"size": "5", "comment": "one=two"}
        file.addfile(info, io.BytesIO(b"12345"))
    [(name, offset, size)] = members(path)
    assert (name, path.read_bytes()[offset : offset + size]) == ("a.jpg", b"12345")


def test_tars_that_were_joined_are_read_to_their_end(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{i}.tar", names=[f"{i}{name}" for name in NAMES]) for i in range(3)]
    (tmp_path / "joined.tar").write_bytes(b"".join(part.read_bytes() for part in parts) + bytes(3 << 20))
    content = (tmp_path / "joined.tar").read_bytes()
    found = [
        (name, content[offset : offset + size])
        for name, offset, size in members(tmp_path / "joined.tar")
        if size >= 0
    ]
    assert [name for name, _ in found] == [f"{i}{name}" for i in range(3) for name in NAMES]
    assert [data for _, data in found] == [bytes([i]) * (i * 300) for i in range(len(NAMES))] * 3
    cut = content[: parts[0].stat().st_size + 900]
    (tmp_path / "cut.tar").write_bytes(cut)
    with pytest.raises(tar.DamagedShard, match=r"cut\.tar: the tar is truncated|behind the end mark"):
        list(members(tmp_path / "cut.tar"))


@pytest.mark.parametrize("more", [b"\n", b"signature " * 100])
def test_what_stands_behind_the_end_and_is_no_tar_is_named(tmp_path: Path, more: bytes) -> None:
    path = write(tmp_path / "a.tar")
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(
        tar.DamagedShard, match=rf"behind the end mark of the tar, at byte {end:,}, stands something"
    ):
        list(members(path))


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_links_and_sparse_files_of_the_tar_command(tmp_path: Path, format: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("a.jpg")
    with (tmp_path / "d.jpg").open("wb") as file:  # more holes than a header of GNU tar has room for
        for i in range(40):
            file.seek(i << 20)
            file.write(b"x" * 4096)
    (tmp_path / "e.jpg").write_bytes(b"67890")
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    subprocess.run(["tar", "-S", f"--format={format}", "-cf", "t.tar", *names], cwd=tmp_path, check=True)
    content, found = (tmp_path / "t.tar").read_bytes(), list(members(tmp_path / "t.tar"))
    assert [(name, min(size, 5)) for name, _, size in found] == [
        ("a.jpg", 5),
        ("b.jpg", tar.LINK),
        ("c.jpg", tar.LINK),
        ("d.jpg", tar.SPARSE),
        ("e.jpg", 5),
    ]
    assert content[found[-1][1] :][:5] == b"67890"


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))  # within the last header; the end mark follows
    cut = tmp_path / "cut.tar"
    for length in [1, 511, 512, 513, end // 3, end // 2, end // 512 * 512, -(-end // 512) * 512]:
        cut.write_bytes(whole[:length])
        with pytest.raises(
            tar.DamagedShard, match=r"cut\.tar: the tar is truncated .*; fetch or pack it again"
        ):
            list(members(cut))


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tar_is_refused_with_the_cure(tmp_path: Path, mode: Any, kind: str) -> None:
    with tarfile.open(tmp_path / "c.tar", mode) as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(tar.DamagedShard, match=rf"c\.tar: a {kind}-compressed .* unpack it to a plain \.tar"):
        list(members(tmp_path / "c.tar"))


def test_empty_file_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e.tar").write_bytes(b"")
    with pytest.raises(tar.DamagedShard, match=r"e\.tar: the file is empty"):
        list(members(tmp_path / "e.tar"))
    (tmp_path / "t.tar").write_bytes(b"this is no tar\n" * 100)
    with pytest.raises(tar.DamagedShard, match=r"t\.tar: no tar header at byte 0"):
        list(members(tmp_path / "t.tar"))


def test_tar_from_before_posix_is_read(tmp_path: Path) -> None:
    header = bytearray(512)
    header[0:5], header[124:135] = b"a.jpg", b"00000000003"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "v7.tar").write_bytes(bytes(header) + b"abc".ljust(512, b"\0") + bytes(1024))
    assert list(members(tmp_path / "v7.tar")) == [("a.jpg", 512, 3)]


def test_damaged_headers_are_refused_and_never_end_in_a_crash_or_a_loop(tmp_path: Path) -> None:
    whole, path, rng = write(tmp_path / "a.tar").read_bytes(), tmp_path / "b.tar", np.random.default_rng(0)
    used = np.frombuffer(whole, np.uint8)[: 20 * 512]
    refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for position in rng.choice(np.flatnonzero(used), 2):
            damaged[position] = rng.choice([0, 32, 45, 49, 55, 57, 65, 128, 255])
        path.write_bytes(damaged)
        try:
            list(members(path))
        except tar.DamagedShard:
            refused += 1
    assert 20 < refused < 2000
