"""`vergence methods`: what it prints of all, of one, and of the settings."""

import pytest

from vergence.methods.catalog import METHODS
from vergence.pipelines import cli


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["methods", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_all_are_listed_with_what_they_do_and_need(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [*METHODS]
    (byol,) = (k for k, line in enumerate(lines) if line.startswith("byol "))
    assert lines[byol].split(maxsplit=1)[1] == "2020  self-distillation     needs 2 or more views; teacher"
    assert "no negatives" in lines[byol + 1]


def test_one_is_shown_with_its_equation_settings_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "simclr")
    for part in ("l(i, j) = -log(", "arXiv:2002.05709", "Tune first: temperature", "method.temperature "):
        assert part in "\n".join(lines)
    start = lines[lines.index("Start from:") + 1 :]
    assert {"  vergence pretrain digits", "  vergence pretrain simclr-cifar10"} <= set(start)
    assert not [line for line in start if "simclr_v2" in line]


def test_settings_are_those_of_every_recipe_and_of_the_method_that_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = told(capsys, "--settings")
    paths = [line.split()[0] for line in common]
    assert {"views.0.size", "optim.groups.0.schedule.shape", "schedule.warmup_epochs"} <= set(paths)
    assert not [path for path in paths if path.startswith("method.")]
    lines = told(capsys, "byol", "--settings")
    assert lines[-len(common) :] == common
    assert [line.split()[1] for line in lines if line.startswith("method.name")] == ["byol."]
    assert [line for line in lines if line.startswith("method.momentum")]


def test_an_unknown_one_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["simclor"], ["simclor", "--settings"]):
        assert cli.main(["methods", *arguments]) == 2
        assert "did you mean simclr?" in capsys.readouterr().err
