import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import png, write_shard
from tiny_encoder import MEAN, STD, make_card, make_encoder

from vergence.pipelines import cli
from vergence.pipelines.look import MAP, SHEET, look
from vergence.platform.encoders.encoder import ModuleEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.sources import open_images
from vergence.platform.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder() -> ModuleEncoder:
    return ModuleEncoder.of(make_encoder(), "tiny", size=16, mean=MEAN, std=STD)


def test_own_images_without_classes_are_drawn_and_broken_ones_left_out(
    encoder: ModuleEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(PIXELS):
        (folder / f"{i}.png").write_bytes(png(pixels))
    (folder / "broken.png").write_bytes(png(PIXELS[0])[:100])
    seen = look(encoder, str(folder), tmp_path / "out", rows=4)
    assert seen == (12, 1)
    for name in (MAP, SHEET):
        with Image.open(tmp_path / "out" / name) as drawn:
            assert min(drawn.size) > 300


def test_a_script_learns_what_was_drawn_and_nothing_else_is_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    export_encoder(make_encoder(), make_card(), tmp_path / "home" / "mine" / "exports")
    samples = [(f"{i}", {"png": png(p)[: None if i else 50]}) for i, p in enumerate(PIXELS)]
    shard, out = write_shard(tmp_path / "t.tar", samples), tmp_path / "out"
    assert cli.main(["look", "mine", str(shard), "--out", str(out), "--rows", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "encoder": "mine",
        "neighbours": f"{out}/{SHEET}",
        "map": f"{out}/{MAP}",
        "images": 11,
        "unreadable": 1,
    }
    assert Path(told["map"]).stat().st_size > 0


def test_classes_of_shards_have_their_names_or_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    named = ((f"{i}", {"png": png(p), "cls": b"%d" % (i % 3)}) for i, p in enumerate(PIXELS))
    shard = write_shard(tmp_path / "t.tar", named)
    labels, names = open_images(str(shard)).classes(np.arange(4))
    assert labels is not None
    assert (labels.tolist(), list(names)) == ([0, 1, 2, 0], ["0", "1", "2"])


def test_too_few_images_are_refused(
    encoder: ModuleEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(UserError, match="1 images can be read; a map takes at least 8"):
        look(encoder, str(tmp_path), tmp_path / "out")
    assert cli.main(["look", "nobody", str(tmp_path)]) == 2
    assert "nobody: no such run" in capsys.readouterr().err
