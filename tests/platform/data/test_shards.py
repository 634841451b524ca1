import fcntl
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_files import NOISE, as_webdataset_reads, image_folder, png, write_shard
from sklearn.datasets import load_digits
from webdataset import TarWriter

from vergence.platform.data.index import open_index
from vergence.platform.data.read import Reader
from vergence.platform.data.shards import pack
from vergence.platform.errors import UserError
from vergence.platform.store import name_of


def contents(pattern: Path) -> list[dict[str, Any]]:
    """Samples as webdataset reads them."""
    return [
        sample for path in sorted(pattern.parent.glob(pattern.name)) for sample in as_webdataset_reads(path)
    ]


def test_folder_bytes_are_copied_and_folders_are_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "src")
    (root / "cat/notes.txt").write_text("no image")
    (root / "cat/.hidden.png").write_bytes(b"x")
    (root / "dog/sub").mkdir()
    (root / "dog/sub/a.b.JPG").write_bytes(b"these bytes are not looked at")
    done = pack(root, tmp_path / "out", per_shard=4)
    assert [name_of(shard) for shard in done.shards] == [f"train-{i:06d}.tar" for i in range(3)]
    assert (done.num_samples, done.num_written, done.classes) == (11, 3, ["cat", "dog"])
    expected = [
        {"__key__": f"{name}/{i}", "png": (root / name / f"{i}.png").read_bytes(), "cls": b"%d" % label}
        for label, name in enumerate(("cat", "dog"))
        for i in range(5)
    ]
    expected.append({"__key__": "dog/sub/a_b", "jpg": b"these bytes are not looked at", "cls": b"1"})
    assert contents(tmp_path / "out/*.tar") == expected
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["cat", "dog"]


def test_flat_folder_has_no_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "src")
    (root / "top.png").write_bytes(b"1")
    assert pack(root, tmp_path / "out").classes is None
    assert all("cls" not in sample for sample in contents(tmp_path / "out/*.tar"))
    assert not (tmp_path / "out/classes.json").exists()


def test_keys_are_unique_and_without_dots(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    long_name = "ü" * 100 + ".jpg"
    for name in ("a.jpg", "a.png", "a.b.png", "a_b.png", "a-2.png", long_name):
        (tmp_path / "src" / name).write_bytes(name.encode())
    pack(tmp_path / "src", tmp_path / "out")
    found = {
        sample.pop("__key__"): next(iter(sample.values())) for sample in contents(tmp_path / "out/*.tar")
    }
    assert found == {
        "a-2": b"a-2.png",
        "a_b": b"a.b.png",
        "a": b"a.jpg",
        "a-3": b"a.png",
        "a_b-2": b"a_b.png",
        "ü" * 100: long_name.encode(),
    }


def test_names_that_webdataset_keeps_for_itself_are_indexed_too(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("__init__.png", "a.b.png", "__x__/y.png", ".hidden.png", "ü ö.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    packed = pack(folder, tmp_path / "out")
    assert packed.num_samples == len(open_index(tmp_path / "out", tmp_path / "index")) == 4


def test_directory_without_images(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_text("x")
    with pytest.raises(UserError, match="src: no images below this folder"):
        pack(tmp_path / "src", tmp_path / "out")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "src/a.parquet")
    with pytest.raises(UserError, match="it holds parquet files: name them by a glob"):
        pack(tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "src")
    for out in ("1", "2"):
        pack(root, tmp_path / out, per_shard=3)
    for path in (tmp_path / "1").glob("train-*.tar"):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_second_run_goes_on_and_a_third_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = image_folder(tmp_path / "src"), tmp_path / "out"
    pack(root, tmp_path / "undisturbed", per_shard=3)

    class Died(Exception):
        pass

    def dies(self: Any, sample: dict[str, Any], write: Callable[..., Any] = TarWriter.write) -> Any:
        if sample["__key__"] == "dog/2":  # in the third of four shards
            raise Died
        return write(self, sample)

    monkeypatch.setattr(TarWriter, "write", dies)
    with pytest.raises(Died):
        pack(root, out, per_shard=3)
    assert sorted(path.name for path in out.glob("train-*")) == ["train-000000.tar", "train-000001.tar"]
    assert not list(out.glob(".*.part"))
    monkeypatch.undo()
    kept = (out / "train-000000.tar").stat().st_mtime_ns
    assert pack(root, out, per_shard=3).num_written == 2
    assert pack(root, out, per_shard=3).num_written == 0
    (out / "train-000001.tar").unlink()
    assert pack(root, out, per_shard=3).num_written == 1
    assert (out / "train-000000.tar").stat().st_mtime_ns == kept
    for path in (tmp_path / "undisturbed").glob("train-*"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_another_source_or_size_of_shards_is_refused(tmp_path: Path) -> None:
    root, out = image_folder(tmp_path / "src"), tmp_path / "out"
    pack(root, out, per_shard=3)
    with pytest.raises(UserError, match=r"train was packed from something else \(other per_shard\)"):
        pack(root, out, per_shard=4)
    (root / "cat/new.png").write_bytes(b"1")
    with pytest.raises(UserError, match=r"other samples, source\); choose another --name"):
        pack(root, out, per_shard=3)
    write_shard(tmp_path / "other/train-000000.tar", [("a", {"png": b"1"})])
    with pytest.raises(UserError, match="were not packed by this command"):
        pack(root, tmp_path / "other")


def test_packs_that_share_a_folder_share_their_classes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(image_folder(tmp_path / "train", ("ant", "bee", "cat")), out)
    test = pack(image_folder(tmp_path / "test", ("bee", "cat")), out, name="test")
    assert test.classes == ["ant", "bee", "cat"]
    assert {sample["cls"] for sample in contents(out / "test-*.tar")} == {b"1", b"2"}
    with pytest.raises(UserError, match="other classes than more's"):
        pack(image_folder(tmp_path / "more", ("bee", "dog")), out, name="more")
    assert pack(tmp_path / "test", out, name="test").num_written == 0


def test_words_of_a_test_set_keep_the_numbers_of_its_training_set(tmp_path: Path) -> None:
    image, out = {"bytes": png(NOISE[0]), "path": None}, tmp_path / "out"
    for name, words in (("train", ["ant", "bee", "cat"]), ("test", ["cat", "bee"])):
        table = pa.table({"image": [image] * len(words), "label": words})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        done = pack(tmp_path / f"{name}.parquet", out, name=name)
        assert done.classes == ["ant", "bee", "cat"]
    assert [sample["cls"] for sample in contents(out / "test-*.tar")] == [b"2", b"1"]


def test_what_was_left_out_is_told_by_every_call(tmp_path: Path) -> None:
    root, out = image_folder(tmp_path / "src"), tmp_path / "out"
    (root / "cat/9.png").symlink_to("nowhere.png")
    (root / "cat/a.heic").write_bytes(b"")
    for written in (1, 0):
        done = pack(root, out)
        assert done.num_written == written
        assert done.notes == ["left out: dead links (1: cat/9.png), .heic (1)"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    root, out = image_folder(tmp_path / "src"), tmp_path / "out"
    out.mkdir()
    with (out / ".train.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `shards pack` is writing here"):
            pack(root, out)
    assert pack(root, out).num_written == 1


def parquet(
    path: Path,
    rows: Sequence[tuple[Any, int | None]],
    column: str = "img",
    row_group_size: int = 3,
    names: list[str] | None = None,
) -> None:
    table = pa.table(
        {column: [row[0] for row in rows], "label": pa.array([row[1] for row in rows], pa.int64())}
    )
    if names:
        about = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=row_group_size)


def test_parquet_files(tmp_path: Path) -> None:
    rows = [({"bytes": png(NOISE[i]), "path": f"dir/a.{i % 8}.png"}, i % 3) for i in range(16)]
    for part in range(2):
        parquet(tmp_path / f"p-{part}.parquet", rows[part * 8 : part * 8 + 8], names=["x", "y", "z"])
    done = pack(tmp_path / "p-*.parquet", tmp_path / "out", per_shard=5)
    assert done.classes == ["x", "y", "z"]
    expected = [
        {"__key__": f"dir/a_{i % 8}" + ("-2" if i >= 8 else ""), "png": png(NOISE[i]), "cls": b"%d" % (i % 3)}
        for i in range(16)
    ]
    assert contents(tmp_path / "out/*.tar") == expected


def test_parquet_without_names_and_labels(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(NOISE[0]).save(jpeg, "JPEG")
    rows = [({"bytes": jpeg.getvalue(), "path": None}, None), ({"bytes": png(NOISE[1]), "path": None}, -1)]
    parquet(tmp_path / "a.parquet", rows, column="image")
    pack(tmp_path / "a.parquet", tmp_path / "out")
    assert contents(tmp_path / "out/*.tar") == [
        {"__key__": "000000000", "jpg": jpeg.getvalue()},
        {"__key__": "000000001", "png": png(NOISE[1])},
    ]
    only_bytes = pa.table({"image": [{"bytes": png(NOISE[2])}]})
    pq.write_table(only_bytes, tmp_path / "b.parquet")
    pack(tmp_path / "b.parquet", tmp_path / "out2")
    assert contents(tmp_path / "out2/*.tar") == [{"__key__": "000000000", "png": png(NOISE[2])}]


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [1], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column img or image of struct.*columns: pixels, label"):
        pack(tmp_path / "a.parquet", tmp_path / "out")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"d\.parquet: damaged, or no parquet file"):
        pack(tmp_path / "d.parquet", tmp_path / "out")
    with pytest.raises(UserError, match="no such file, folder or glob"):
        pack(tmp_path / "c-*.parquet", tmp_path / "out")


def test_torchvision_fake_data(tmp_path: Path) -> None:
    spec = "torchvision:FakeData?size=7&image_size=3,12,10&num_classes=4"
    pack(spec, tmp_path / "out")
    from vergence.methods.torchvision_shim import torchvision

    expected = torchvision.datasets.FakeData(size=7, image_size=(3, 12, 10), num_classes=4)
    reader = Reader(open_index(tmp_path / "out", tmp_path / "cache"))
    for i, image in enumerate(reader.images(np.arange(7))):
        np.testing.assert_array_equal(image, np.asarray(expected[i][0]))
    assert reader.index.labels(np.arange(7)).tolist() == [int(expected[i][1]) for i in range(7)]
    with pytest.raises(UserError, match="did you mean FakeData"):
        pack("torchvision:FakeDate", tmp_path / "out2")
    with pytest.raises(UserError, match=r"torchvision:FakeData: .*sizes"):
        pack("torchvision:FakeData?sizes=7", tmp_path / "out2")


def test_digits_are_the_real_ones_and_can_be_enlarged(tmp_path: Path) -> None:
    digits = load_digits()
    pack("sklearn:digits", tmp_path / "all")
    reader = Reader(open_index(tmp_path / "all", tmp_path / "cache"))
    ids = np.arange(1797)
    images = np.array(reader.images(ids))
    assert np.abs(images[..., 0] * (16 / 255) - digits.images).max() < 0.04  # a grey level is 16 / 255
    assert (images == images[..., :1]).all()
    assert (images.min(), images.max()) == (0, 255)
    assert reader.index.labels(ids).tolist() == digits.target.tolist()
    pack("sklearn:digits?split=train&size=16", tmp_path / "parts", name="train")
    pack("sklearn:digits?split=test", tmp_path / "parts", name="test", size=16)
    parts = [
        Reader(open_index(tmp_path / f"parts/{name}-*.tar", tmp_path / "cache")) for name in ("train", "test")
    ]
    assert [len(part.index) for part in parts] == [1438, 359]
    test_labels = parts[1].index.labels(np.arange(359))
    assert test_labels.tolist() == digits.target[4::5].tolist()
    assert parts[1].images(np.array([0]))[0].shape == (16, 16, 3)
    with pytest.raises(UserError, match="split=valid; valid: all, test, train"):
        pack("sklearn:digits?split=valid", tmp_path / "x")


def test_size_is_refused_where_bytes_are_copied(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never resized"):
        pack(image_folder(tmp_path / "src"), tmp_path / "out", size=32)


def test_cifar10_in_its_original_order(shared: Path, tmp_path: Path) -> None:
    done = pack(shared / "data/cifar10/test-*.parquet", tmp_path, name="test")
    assert (done.num_samples, len(done.shards), done.classes[3]) == (10_000, 2, "cat")
    table = pq.read_table(next((shared / "data/cifar10").glob("test-*.parquet")))
    reader = Reader(open_index(tmp_path / "test-{000000..000001}.tar", tmp_path / "cache"))
    assert reader.index.labels(np.arange(10_000)).tolist() == table["label"].to_pylist()
    rows = np.arange(0, 10_000, 97)
    assert reader.raw(rows, "image") == [row["bytes"] for row in table["img"].take(rows).to_pylist()]
    with tarfile.open(done.shards[0]) as file:
        assert {member.mtime for member in file.getmembers()} == {0}
