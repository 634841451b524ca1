from pathlib import Path

import pytest

from vergence.pipelines import cli
from vergence.pipelines.recipe import load_recipe


def test_a_recipe_is_written_that_is_the_one_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "mine", "--from", "byol-cifar10"]) == 0
    assert "vergence pretrain mine.yaml data.train=SHARDS --dry-run" in capsys.readouterr().out
    assert load_recipe("mine.yaml") == load_recipe("byol-cifar10")
    text = (tmp_path / "mine.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.strip().startswith("rule:")]
    assert "# linear | sqrt | none. how lr grows" in line
    assert "#     blur: null" in text  # its preset's value holds

    (tmp_path / "mine.yaml").write_text("changed")
    assert cli.main(["init", "mine"]) == 2
    assert "mine.yaml is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "changed"


def test_without_a_name_the_recipe_for_own_photographs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init"]) == 0
    text = capsys.readouterr().out
    assert "register: null" in text
    assert "size: 96" in text
    assert "cifar10" not in text


def test_a_name_that_would_hide_a_shipped_recipe_is_refused_with_the_cure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["init", "simclr-cifar10"]) == 2
    assert "vergence init NEW --from simclr-cifar10" in capsys.readouterr().err
