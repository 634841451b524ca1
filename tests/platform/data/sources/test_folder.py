import os
from pathlib import Path

import numpy as np
import pytest
from shard_files import png

from vergence.platform.data.sources.folder import Folder
from vergence.platform.data.sources.source import Source
from vergence.platform.errors import UserError

PNG = png(np.zeros((4, 4, 3), np.uint8))


def fill(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(PNG)
    return root


def samples(source: Source) -> list[tuple[str, str, int | None]]:
    return [(sample.key, sample.extension, sample.label) for sample in source.samples(0, source.num)]


def test_a_link_back_and_a_dead_one_add_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "cat/0.png", "dog/0.png")
    (root / "all").symlink_to(".")
    (root / "cat/9.png").symlink_to("../nowhere.png")
    source = Folder(root, None, None)
    assert (source.num, source.classes) == (2, ["cat", "dog"])
    assert source.notes == ["left out: dead links (1: cat/9.png), folders read already (1: all/)"]


def test_one_picture_beside_class_folders_is_said_with_the_cure(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "cat/0.png", "dog/0.png", "preview.png")
    source = Folder(root, None, None)
    assert (source.num, source.classes) == (3, None)
    assert source.notes == [
        f"no classes: 1 of 3 images lies directly in {root} (preview.png); "
        "move what lies there into a class folder, or away, and the folders are classes"
    ]
    assert Folder(root, "none", None).notes == []  # no classes were asked for
    assert Folder(fill(tmp_path / "flat", "a.png", "b.png"), None, None).notes == []


def test_classes_can_be_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", "cat/0.png", "dog/0.png")
    with_classes, without = Folder(root, None, None), Folder(root, "none", None)
    assert [sample[2] for sample in samples(with_classes)] == [0, 1]
    assert [sample[2] for sample in samples(without)] == [None, None]
    assert without.classes is None
    assert without.fingerprint != with_classes.fingerprint
    with pytest.raises(UserError, match="--label fine"):
        Folder(root, "fine", None)


def test_names_of_all_kinds(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "src", b"caf\xe9/\xfcber.png", "dog/x.jfif", "dog/plain", "dog/two\nlines.png", "dog/v1.2"
    )
    source = Folder(root, None, None)
    assert source.classes == [r"caf\xe9", "dog"]
    assert samples(source) == [
        (r"caf\xe9/\xfcber", "png", 0),
        ("dog/plain", "png", 1),
        (r"dog/two\nlines", "png", 1),
        ("dog/v1_2", "png", 1),
        ("dog/x", "jpg", 1),
    ]
    assert [sample.data for sample in source.samples(0, source.num)] == [PNG] * 5


def test_a_folder_that_holds_other_things_says_which(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(3):
        (tmp_path / f"src/{i}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"src: no images below this folder .*; left out: \.heic \(3\)"):
        Folder(tmp_path / "src", None, None)
