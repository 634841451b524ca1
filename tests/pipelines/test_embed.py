"""`vergence embed`: what is written, for shards and for folders, and what a second command does."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_files import png, write_shard
from tiny_encoder import make_card, make_encoder

from vergence.pipelines import cli
from vergence.pipelines.embed import embed
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.resize import resize
from vergence.platform.errors import UserError, VergenceError

IMAGES = [
    np.random.default_rng(i).integers(0, 256, (16, 16 + i % 3, 3), dtype=np.uint8) for i in range(30)
]  # of three sizes


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    folder = export_encoder(make_encoder(), make_card(), tmp_path_factory.mktemp("run") / "exports")
    return load_encoder(str(folder / "encoder.pt2"))


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tars of 10 images."""
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    for shard in range(3):
        samples = [(f"{i:03d}", {"png": png(IMAGES[i])}) for i in range(shard * 10, shard * 10 + 10)]
        write_shard(tmp_path / "shards" / f"train-{shard}.tar", samples)
    return tmp_path / "shards"


def expected(encoder: LoadedEncoder, ids: Iterable[int]) -> np.ndarray:
    return encoder(np.stack([resize(IMAGES[i], 16) for i in ids]))


def rows(file: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(file)
    assert table.column_names == ["key", "embedding"]
    return table["key"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


def test_one_file_has_every_key_in_order_and_the_encoders_vectors(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out.parquet"
    written = embed(encoder, str(shards / "train-{0..2}.tar"), out)
    keys, embeddings = rows(out)
    assert keys == [f"{i:03d}" for i in range(30)]
    np.testing.assert_allclose(embeddings, expected(encoder, range(30)), atol=1e-5)
    assert (written.rows, written.bad, written.existed) == (30, [], False)
    assert pq.read_schema(out).field("embedding").type.value_type == "float"
    assert [p.name for p in out.parent.iterdir()] == ["out.parquet"]


def test_a_finished_file_is_kept_and_another_encoders_is_refused(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    embed(encoder, str(shards), out)
    before = out.stat().st_mtime_ns
    assert embed(encoder, str(shards), out).existed
    with pytest.raises(UserError, match=r"exists and is of .* data_digest"):
        embed(encoder, str(shards / "train-0.tar"), out)
    (tmp_path / "mine.parquet").write_text("mine")
    with pytest.raises(UserError, match="exists and is of another program"):
        embed(encoder, str(shards), tmp_path / "mine.parquet")
    assert out.stat().st_mtime_ns == before
    assert (tmp_path / "mine.parquet").read_text() == "mine"


class Stops:
    """An encoder that is interrupted after some calls."""

    def __init__(self, encoder: LoadedEncoder, calls: int) -> None:
        self.encoder, self.calls = encoder, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.encoder(images)


def test_a_folder_goes_on_after_an_interruption_and_ends_with_a_manifest(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        embed(Stops(encoder, 2), str(shards), out)
    assert sorted(os.listdir(out)) == ["train-0.parquet", "train-1.parquet"]  # whole files only
    before = (out / "train-0.parquet").stat().st_mtime_ns
    assert embed(Stops(encoder, 1), str(shards), out).rows == 30  # only what was missing
    assert (out / "train-0.parquet").stat().st_mtime_ns == before
    assert sorted(os.listdir(out)) == ["_MANIFEST.json", *(f"train-{i}.parquet" for i in range(3))]
    manifest = json.loads((out / "_MANIFEST.json").read_text())
    assert manifest["rows"] == {f"train-{i}.parquet": 10 for i in range(3)}
    assert manifest["encoder_digest"] == encoder.digest
    keys, embeddings = rows(out / "train-2.parquet")
    assert keys == [f"{i:03d}" for i in range(20, 30)]
    np.testing.assert_allclose(embeddings, expected(encoder, range(20, 30)), atol=1e-5)
    assert embed(Stops(encoder, 0), str(shards), out).existed


def test_a_folder_of_other_data_is_refused(encoder: LoadedEncoder, shards: Path, tmp_path: Path) -> None:
    embed(encoder, f"{shards}/train-0.tar", tmp_path / "out")
    with pytest.raises(UserError, match=r"data_digest .* choose another OUT or delete it"):
        embed(encoder, f"{shards}/train-1.tar", tmp_path / "out")


def test_shards_of_one_name_in_two_folders_get_files_of_their_own(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    for folder, i in (("a", 1), ("b", 2)):
        write_shard(tmp_path / "two" / folder / "x.tar", [(f"{i}", {"png": png(IMAGES[i])})])
    embed(encoder, str(tmp_path / "two" / "*" / "x.tar"), tmp_path / "out")
    assert rows(tmp_path / "out" / "000000-x.parquet")[0] == ["1"]
    assert rows(tmp_path / "out" / "000001-x.parquet")[0] == ["2"]


def test_unreadable_images_are_left_out_and_named(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [("a", {"png": png(IMAGES[0])}), ("b", {"png": png(IMAGES[1])[:60]})]
    write_shard(tmp_path / "broken.tar", broken)
    written = embed(encoder, str(tmp_path / "broken.tar"), tmp_path / "out.parquet")
    assert rows(tmp_path / "out.parquet")[0] == ["a"]
    assert written.bad == ["broken.tar:b"]
    assert embed(encoder, str(tmp_path / "broken.tar"), tmp_path / "out.parquet").bad == ["broken.tar:b"]
    write_shard(tmp_path / "all.tar", broken[1:])
    with pytest.raises(VergenceError, match=r"none of its 1 images can be read, the first is all\.tar:b"):
        embed(encoder, str(tmp_path / "all.tar"), tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


def test_a_folder_of_images_by_relative_path(encoder: LoadedEncoder, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "b.PNG").write_bytes(png(IMAGES[1]))
    (folder / "a.png").write_bytes(png(IMAGES[0]))
    (folder / "c.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    written = embed(encoder, str(folder), tmp_path / "out.parquet")
    keys, embeddings = rows(tmp_path / "out.parquet")
    assert keys == ["a.png", "cats/b.PNG"]
    np.testing.assert_allclose(embeddings, expected(encoder, [0, 1]), atol=1e-5)
    assert written.bad == [str(folder / "c.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no shards .* and no images"):
        embed(encoder, str(tmp_path / "empty"), tmp_path / "out2.parquet")


def test_a_folder_with_links_and_names_of_all_kinds(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape")
    (folder / "cats").mkdir(parents=True)
    (folder / "plain").write_bytes(png(IMAGES[0]))
    (folder / "cats" / b"\xfc.png".decode("utf-8", "surrogateescape")).write_bytes(png(IMAGES[1]))
    (folder / "cats" / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"")
    (folder / "a.heic").write_bytes(b"")
    (folder / "all").symlink_to(".")
    (folder / "gone.png").symlink_to("nowhere.png")
    out = tmp_path / "out"
    assert cli.main(["embed", encoder.name, str(folder), str(out)]) == 0
    keys, embeddings = rows(out / "part-00000.parquet")
    assert keys == [r"cats/\xfc.png", "plain"]
    np.testing.assert_allclose(embeddings, expected(encoder, [1, 0]), atol=1e-5)
    assert json.loads((out / "_MANIFEST.json").read_text())["unreadable"][0].endswith(
        r"caf\xe9/cats/\xff.png"
    )
    assert capsys.readouterr().out.splitlines()[-1] == (
        "left out: dead links (1: gone.png), .heic (1), folders read already (1: all/)"
    )


def test_shards_and_encoders_under_names_that_are_no_utf8(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path
) -> None:
    latin = tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape")
    latin.mkdir()
    (shards / "train-0.tar").rename(latin / b"\xfc.tar".decode("utf-8", "surrogateescape"))
    shutil.copytree(Path(encoder.name).parent, latin / "exports")
    written = embed(load_encoder(str(latin / "exports/encoder.pt2")), str(latin), latin / "out")
    assert written.rows == 10
    manifest = (latin / "out/_MANIFEST.json").read_text(encoding="utf-8")
    assert json.loads(manifest)["rows"] == {r"\xfc.parquet": 10}
    assert json.loads(manifest)["encoder"].endswith(r"/caf\xe9/exports/encoder.pt2")
    assert "\\ud" not in manifest  # half a character, which other programs refuse
    assert embed(encoder, str(latin), latin / "out").existed


def test_command_says_what_it_wrote_and_is_2_for_an_unknown_encoder(
    encoder: LoadedEncoder, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.parquet")
    assert cli.main(["embed", encoder.name, str(shards), out]) == 0
    assert f"{out}: written: 30 embeddings of 128 numbers" in capsys.readouterr().out
    assert cli.main(["embed", encoder.name, str(shards), out]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.main(["embed", "nobody", str(shards), out]) == 2
    assert "nobody: no such run" in capsys.readouterr().err
