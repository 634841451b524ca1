"""Mistakes end `pretrain` before Ray starts, with one line that names place and cure."""

import importlib
import socket
import time
from pathlib import Path

import pytest
import torch

from vergence.pipelines import cli
from vergence.platform import yaml
from vergence.platform.runs import commit as commits
from vergence.platform.runs.fork import fork
from vergence.platform.runs.run import Run


def test_a_cluster_that_does_not_answer_is_one_line_within_15_s(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(place / "unreachable"))
    importlib.import_module(
        "vergence.pipelines.advance"
    )  # the imports on a busy machine are not what is measured
    with socket.create_server(("0.0.0.0", 0)) as silent:  # takes connections and says nothing
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert cli.main(["pretrain", str(place / "tiny.yaml")]) == 2
    assert time.monotonic() - begin < 15
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if not line.startswith("scanning shards: ")]  # told on a slow machine
    assert len(lines) == 1
    assert "no Ray cluster answers there (no answer within 5 s)" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.temprature=0.1"], "method.temprature is not a setting (did you mean temperature?"),
        (["batch.globl=64"], "batch.globl is not a setting (did you mean global?"),
        (["epochs=three"], "epochs: input should be a valid integer"),
        (["method.name=simcrl"], "did you mean simclr?"),
        (["scale.workers=3"], "64 does not divide by 3 workers; nearest: 63, 66"),
        (["batch.micro=24"], "batch.micro 24 does not divide a worker's share of 32 samples"),
        (["norm.group=24"], "norm.group 24 does not divide"),
        (["batch.global=640", "scale.workers=1"], "576"),
        (["scale.workers=64"], "this machine has"),
        (["scale.gpus_per_worker=1"], "GPU"),
        (["scale.zero=3"], "stage 3"),
        (["optim.name=lars", "scale.zero=1"], "lars"),
        (["data.train=nowhere/*.tar"], "nowhere/*.tar"),
        (["epochs"], "not an override"),
        (["encoder.name=resnet19"], "resnet"),
        (["views.0.recipe=simclr-cifr"], "simclr-cifar"),
        (
            ["views.0.count=1"],
            "simclr takes at least 2 views of one size, then any number of smaller ones, got 1 x 32",
        ),
        (
            [
                "encoder.name=vit_tiny_patch16_224",
                "encoder.stem=default",
                "encoder.width=1.0",
                "views.0.size=30",
            ],
            "simclr on vit_tiny_patch16_224 cannot take views of 30, 30 pixels",
        ),
        (["optim.groups=[{match: predictor.*}]"], "fits no trainable parameter"),
        (["schedule.warmup_epochs=4"], "schedule.warmup_epochs=4 is longer than the run of 3 epochs"),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(
    place: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(place / "mistakes"))
    assert cli.main(["pretrain", str(place / "tiny.yaml"), *arguments, "--dry-run"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if not line.startswith("scanning shards: ")]  # told on a slow machine
    assert len(lines) == 1
    assert message in lines[0]


def test_unknown_recipe_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "simclr-cifar"]) == 2
    said = capsys.readouterr().err
    assert "did you mean simclr-cifar10?" in said
    assert len(said.strip().splitlines()) == 1


def test_dry_run_prints_the_resolved_recipe_and_runs_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(place / "dry"))
    assert cli.main(["pretrain", str(place / "tiny.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert yaml.parse(said.out, "stdout")["optim"]["momentum"] == 0.9
    assert "# 32, filled in" in said.out  # batch.micro
    assert "MB a worker" in said.err
    assert not (place / "dry" / "tiny").exists()


def test_a_run_begun_under_another_holdout_rule_is_refused_and_may_be_forked(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would train on what it held out; without a holdout there is no such thing."""
    monkeypatch.setenv("VERGENCE_HOME", str(place / "another-rule"))
    command = ["pretrain", str(place / "tiny.yaml"), "--dry-run"]
    for name in ("old", "without"):
        (place / "another-rule" / name).mkdir(parents=True)
        manifest = {"step": 3, "score": None, "counts": {}}  # of a commit before there were rules
        commits.write(
            place / "another-rule" / name / "commits", {"w": torch.zeros(1)}, manifest, "a", lambda: True
        )
    assert cli.main([*command, "--name", "old"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "run old was begun" in line
    assert "--fork NEW" in line
    assert cli.main([*command, "data.holdout=0", "--name", "without"]) == 0
    fork(Run("old"), Run("new"))
    assert cli.main([*command, "--name", "new"]) == 0
    assert "run new (forked from old at step 3)" in capsys.readouterr().err
