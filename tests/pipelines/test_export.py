"""`vergence export`: the format by name or ending, what is said, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import make_card, make_encoder

from vergence.pipelines import cli, export, load_encoder
from vergence.pipelines.export import KINDS
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.formats import FORMATS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    export_encoder(make_encoder(), make_card(), home / "run" / "exports")
    return home


@pytest.fixture(autouse=True)
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def test_every_format_has_its_words() -> None:
    assert KINDS.keys() == FORMATS.keys()


def test_the_ending_names_the_format_and_the_facts_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "run", "new/encoder.onnx", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    encoder = load_encoder("run")
    assert facts == {
        "encoder": "run",
        "digest": encoder.digest,
        "format": "onnx",
        "out": "new/encoder.onnx",
        "bytes": Path("new/encoder.onnx").stat().st_size,
        "size": 16,
        "dim": 128,
    }
    assert cli.main(["export", "run", "encoder", "--format", "pt2"]) == 0
    assert capsys.readouterr().out.startswith("encoder: written: run as pt2, ")
    zeros = np.zeros((3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(load_encoder("encoder")(zeros), encoder(zeros))
    assert export(encoder, "weights.safetensors", "safetensors")["bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "encoder"], "encoder: its ending names no format"),
        (["run", "x.onnx", "--format", "onx"], "format 'onx': there is no such one (did you mean onnx?"),
        (["run", "folder", "--format", "pt2"], "folder: is a folder; the format pt2 is a file"),
        (["run", "file", "--format", "timm"], "file: is a file; the format timm is a folder"),
        (
            ["run", "new", "--format", "timm"],
            "with stem=cifar, width=0.25, which timm.create_model cannot build",
        ),
        (["ron", "x.pt2"], "did you mean run?"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    assert cli.main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["file", "folder"]
