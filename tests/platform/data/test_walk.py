"""What is found below a folder, what is left out, and how that is said."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_files import png

from vergence.platform.data.walk import LeftOut, folders, image_files

PNG = png(np.zeros((4, 4, 3), np.uint8))


def fill(root: Path, *names: str | bytes, data: bytes = PNG) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return root


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def paths(root: Path) -> list[str]:
    return [image.path for image in image_files(root)[0]]


def left_out(root: Path) -> list[str]:
    return image_files(root)[1].lines()


def test_a_real_folder_is_read_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "cat/0.png", "dog/1.png")
    fill(tmp_path, "outside/2.png", "outside/deep/3.png")
    link(root / "all", ".")
    link(root / "cat/up", "..")
    link(root / "a_link_before_the_real_one", "cat")
    link(root / "more", tmp_path / "outside")
    link(root / "again", tmp_path / "outside/deep")
    assert paths(root) == ["again/3.png", "cat/0.png", "dog/1.png", "more/2.png"]
    assert left_out(root) == [
        "left out: folders read already (4: a_link_before_the_real_one/, all/, cat/up/, ...)"
    ]


def test_links_to_files_are_files_and_links_to_nothing_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "a.png")
    link(root / "b.png", "a.png")
    link(root / "gone.png", "nowhere.png")
    link(root / "circle", "circle")
    link(root / "through_a_file.png", "a.png/b.png")
    assert paths(root) == ["a.png", "b.png"]
    assert left_out(root) == ["left out: dead links (3: circle, gone.png, through_a_file.png)"]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "a.png")
    os.mkfifo(root / "pipe")
    os.mkfifo(root / "pipe.png")
    assert paths(root) == ["a.png"]
    assert left_out(root) == ["left out: pipes or devices (2: pipe, pipe.png)"]


def test_the_content_decides_where_the_ending_does_not(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "x.jfif", "x.JPE", "plain", "v1.2", "x.PNG", "sub.dir/plain")
    fill(root, "x.heic", "y.heic", "readme", ".hidden.png", ".git/a.png", data=b"\0\0\0\x18ftypheic")
    fill(root, "raw.cr2", data=b"II*\0" + bytes(40))
    fill(root, "tiff_without_an_ending", data=b"II*\0" + bytes(40))
    images, _ = image_files(root)
    assert images == [
        ("plain", "plain", "png"),
        ("sub.dir/plain", "sub.dir/plain", "png"),
        ("tiff_without_an_ending", "tiff_without_an_ending", "tif"),
        ("v1.2", "v1.2", "png"),
        ("x.JPE", "x", "jpg"),
        ("x.PNG", "x", "png"),
        ("x.jfif", "x", "jpg"),
    ]
    assert left_out(root) == ["left out: hidden names (2), .heic (2), .cr2 (1), no ending (1)"]


def test_names_that_are_no_utf8_are_found_and_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", b"caf\xe9/\xfcber.png", b"caf\xe9/x.t\xe9xt", data=b"x")
    assert [os.fsencode(path) for path in paths(root)] == [b"caf\xe9/\xfcber.png"]
    assert left_out(root) == [r"left out: .t\xe9xt (1)"]


def test_many_reasons_are_one_short_line() -> None:
    left_out = LeftOut()
    for i in range(30):
        for _ in range(i + 1):
            left_out.add(f".{i}")
    [line] = left_out.lines()
    assert (
        line
        == "left out: .29 (30), .28 (29), .27 (28), .26 (27), .25 (26), .24 (25), .23 (24), .22 (23), others (253)"
    )
    assert LeftOut().lines() == []


def test_folders_end_in_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/b/x", ".hidden/x")
    link(tmp_path / "a/loop", "..")
    assert folders(f"{tmp_path}/") == [f"{tmp_path}/", f"{tmp_path}/a/", f"{tmp_path}/a/b/"]
    monkeypatch.chdir(tmp_path)
    assert folders("") == ["", "a/", "a/b/"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "src", "a/0.png", "b/1.png")

    def forbidden(path: str, scandir: Callable[..., Any] = os.scandir) -> Any:
        if os.fspath(path).endswith("b/"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError):
        image_files(tmp_path / "src")
