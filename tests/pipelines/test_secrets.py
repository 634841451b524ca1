"""A password in an address is nowhere in what the verbs print or leave behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from vergence.pipelines import cli, quickstart

SECRET = "s3cret-pa55"
ADDRESS = f"http://user:{SECRET}@127.0.0.1:9/x.tar?token={SECRET}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_nowhere(said: Any, folder: Path) -> None:
    assert SECRET not in said.out + said.err
    for path in folder.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ["shards", "pack", ADDRESS, "out"],
        ["shards", "index", ADDRESS],
        ["shards", "check", ADDRESS],
        ["pretrain", ADDRESS],
        ["pretrain", "simclr-cifar10", f"data.train={ADDRESS}"],
        ["pretrain", "simclr-cifar10", f"track.experiment={ADDRESS}"],
        ["pretrain", "simclr-cifar10", f"optim.lr={ADDRESS}"],
        ["pretrain", "simclr-cifar10", f"optim.{ADDRESS}"],
        ["pretrain", "simclr-cifar10", "--name", ADDRESS],
        ["evaluate", ADDRESS, "--train", "a", "--test", "b"],
        ["evaluate", "models:/x@champion", "--train", "a", "--test", "b"],
        ["evaluate", f"models:/{ADDRESS}", "--train", "a", "--test", "b"],
        ["embed", "models:/x/1", "a", "b"],
        ["embed", ADDRESS, ADDRESS, ADDRESS],
        ["export", "models:/x/1", "out.onnx"],
        ["export", ADDRESS, ADDRESS],
        ["promote", "x"],
        ["promote", ADDRESS, "--train", ADDRESS, "--test", ADDRESS],
        ["promote", "x", "--rollback"],
        ["runs", "show", ADDRESS],
        ["runs", "list", ADDRESS],
        ["methods", ADDRESS],
        [ADDRESS],
    ],
)
def test_no_verb_tells_a_secret_when_it_fails(
    command: list[str], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = cli.main(command)
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code in (1, 2)
    said = capfd.readouterr()
    assert_nowhere(said, place)
    assert "***@" in said.err  # the address is named all the same


def test_the_quickstart_tells_where_the_encoder_is_without_the_secret(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = place / "knn.json"
    figures = {name: {"knn-v1": {"top1": 0.5}} for name in ("encoder", "as initialised", "raw pixels")}
    report.write_text(json.dumps({"results": figures}))
    quickstart._summary({"test": report, "moved": report}, place / "map.png", 1.0)
    assert_nowhere(capfd.readouterr(), place)
