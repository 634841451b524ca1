"""Images that end in no sample, for whatever reason: counted, named by shard, and told."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from shard_files import png, write_shard

from vergence.platform.data.expand import expand
from vergence.platform.data.index import open_index
from vergence.platform.data.scan import SECOND, scan
from vergence.platform.store import name_of

PNG = png(np.zeros((4, 4, 3), np.uint8))


def write(path: Path, *names: str, links: Iterable[tuple[str, bytes, str]] = ()) -> Path:
    """A tar of images under these names, and of (link, type, target)."""
    with tarfile.open(path, "w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            file.addfile(info, io.BytesIO(PNG))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    return path


def lost(*paths: Path) -> dict[str, tuple[dict[str, int], dict[str, list[str]]]]:
    return {
        name_of(shard): (dict(found.counts), found.names)
        for path in paths
        for shard, found in scan(expand(path).found).lost.items()
    }


def test_dots_in_file_names(tmp_path: Path) -> None:
    path = write(tmp_path / "dots.tar", *(f"frame_t=0.{i:02d}.jpg" for i in range(50)))
    names = [f"frame_t=0.{i:02d}.jpg" for i in (1, 2, 3)]
    assert lost(path) == {"dots.tar": ({SECOND: 49}, {SECOND: names})}
    [note] = open_index(path, tmp_path / "cache").notes
    assert note == (
        "images that end in no sample: second images of a key, which ends at the first dot of a file name (`vergence "
        "shards pack` replaces dots) (49: frame_t=0.01.jpg, frame_t=0.02.jpg, frame_t=0.03.jpg, ...)"
    )


@pytest.mark.parametrize(
    ("names", "second"),
    [
        (["a.jpg", "a.1.jpg", "a.2.jpg", "b.jpg", "c.jpg"], ["a.1.jpg", "a.2.jpg"]),
        (["dog.jpg", "dog.png", "cat.jpg", "fox.jpg"], ["dog.png"]),
        (["a.jpg", "b.jpg", "c.jpg", "photo.edited.jpg"], ["photo.edited.jpg"]),
        (["v1.0_a.png", "v1.0_b.png", "v2.0_a.png", "v2.0_b.png"], ["v1.0_b.png", "v2.0_b.png"]),
    ],
)
def test_a_few_second_images_of_a_key_are_lost(tmp_path: Path, names: list[str], second: list[str]) -> None:
    [(counts, found)] = lost(write(tmp_path / "a.tar", *names)).values()
    assert (counts, sorted(found[SECOND])) == ({SECOND: len(second)}, second)


@pytest.mark.parametrize("views", [["jpg", "seg.png"], ["jpg", "png"], ["left.jpg", "right.jpg"]])
def test_named_views_are_no_loss_but_told(tmp_path: Path, views: list[str]) -> None:
    path = write(tmp_path / "a.tar", *(f"{i}.{view}" for i in range(4) for view in views))
    assert lost(path) == {}
    assert open_index(path, tmp_path / "cache").notes == [f"images of other views, not used: .{views[1]} (4)"]


def test_members_outside_of_samples_count_if_they_are_images(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        *("a.jpg", ".hidden.jpg", "folder/plain", "__meta__/x.png", "b.jpg"),
        links=[
            ("hard.jpg", tarfile.LNKTYPE, "a.jpg"),
            ("soft.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("words.txt", tarfile.SYMTYPE, "a.txt"),
        ],
    )
    [(counts, names)] = lost(path).values()
    assert {reason.partition(" (")[0].partition(",")[0]: count for reason, count in counts.items()} == {
        "hidden names": 1,
        "names without an ending": 1,
        "names __like this__": 1,
        "links to other members": 2,
    }
    assert names["names without an ending"] == ["folder/plain"]
    with tarfile.open(tmp_path / "mac.tar", "w") as file:  # what macOS puts beside each file
        for name, data in (("a.jpg", PNG), ("._a.jpg", b"\0\5\x16\7" + bytes(100)), ("LICENSE", b"free")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    assert lost(tmp_path / "mac.tar") == {}


def test_losses_stand_by_shard_and_as_one_line_for_the_set(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.tar", "a.jpg", "a.1.jpg", "b.jpg", "c.jpg") for i in range(3)]
    assert list(lost(*paths)) == ["0.tar", "1.tar", "2.tar"]
    [note] = open_index(tmp_path, tmp_path / "cache").notes
    assert note.endswith("(3: a.1.jpg, a.1.jpg, a.1.jpg)")


def test_samples_without_an_image_are_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("a", {"png": PNG}), ("b", {"txt": b"1"}), ("c", {"json": b"1"})])
    assert open_index(tmp_path / "a.tar", tmp_path / "cache").notes == ["2 of 3 samples have no image"]


def test_a_jfif_is_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", "a.jfif", "b.JPE")
    assert len(open_index(path, tmp_path / "cache")) == 2
    assert lost(path) == {}


def test_members_of_a_sample_that_stand_apart_are_told(tmp_path: Path) -> None:
    samples = [(str(i), {"png": PNG}) for i in range(3)] + [(str(i), {"cls": b"1"}) for i in range(3)]
    assert open_index(write_shard(tmp_path / "a.tar", samples), tmp_path / "cache").notes == [
        "3 of 6 samples have no image",
        "3 of 6 samples have no class (.cls)",
        "3 keys come back later in their shard: tar --sort=name keeps a sample together",
    ]


def test_shards_without_images_are_a_set_of_their_own_where_there_are_no_others(tmp_path: Path) -> None:
    sounds = [(f"s{i}", {"wav": b"RIFF", "cls": b"%d" % i}) for i in range(3)]
    write_shard(tmp_path / "a.tar", sounds)
    write_shard(tmp_path / "b.tar", [("t", {"txt": b"words"})])
    index = open_index(tmp_path, tmp_path / "cache", images=False)
    assert [name_of(shard) for shard in index.shards] == ["a.tar", "b.tar"]
    assert index.extensions == {"cls": 3, "txt": 1, "wav": 3}
    assert [name_of(index.shard_of(i)) for i in range(4)] == ["a.tar"] * 3 + ["b.tar"]
    assert index.labels(np.arange(4)).tolist() == [0, 1, 2, -1]
    assert index.notes == ["1 of 4 samples have no class (.cls)"]
    write_shard(tmp_path / "c.tar", [("p", {"png": PNG})])
    with_images = open_index(tmp_path, tmp_path / "cache")
    assert [name_of(shard) for shard in with_images.shards] == ["c.tar"]
    alone = open_index(tmp_path / "c.tar", tmp_path / "cache")
    assert with_images.digest == alone.digest != index.digest
