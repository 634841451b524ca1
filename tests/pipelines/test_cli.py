import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from vergence.pipelines import cli
from vergence.platform.errors import UserError, nearest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    return tmp_path


def test_no_runs_yet_says_how_to_start_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "list"]) == 0
    assert "vergence pretrain" in capsys.readouterr().out


def test_runs_are_listed_and_shown_with_their_state(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vergence.pipelines.recipe import load_recipe
    from vergence.platform import yaml
    from vergence.platform.runs import commit as commits
    from vergence.platform.runs.run import Run

    run = Run("mine")
    run.commits.mkdir(parents=True)
    run.recipe_file.write_text(yaml.dump(load_recipe("simclr-cifar10").dump()))
    facts = {"step": 7, "score": 0.25, "counts": {"updates": 7}}
    commits.write(run.commits, {}, facts, "a", owned=lambda: True)
    assert cli.main(["runs", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["state"], listed["method"], listed["step"]) == (
        "mine",
        "stopped",
        "simclr",
        7,
    )
    assert cli.main(["runs", "show", "mine"]) == 0
    shown = yaml.parse(capsys.readouterr().out, "shown")
    assert shown["commits"] == [{"step": 7, "score": 0.25}]
    assert shown["recipe"]["batch"]["global"] == 128
    assert cli.main(["runs", "show", "mien"]) == 2
    assert "did you mean mine?" in capsys.readouterr().err


DAMAGE = {
    "run.json": "run.json",
    "recipe": "recipe.resolved.yaml",
    "lock": "lock.json",
    "manifest": "commits/step-00000007/manifest.json",
}


@pytest.mark.parametrize("half", [False, True], ids=["empty", "half"])
@pytest.mark.parametrize("what", DAMAGE)
def test_one_damaged_run_is_listed_as_such_and_costs_the_others_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], what: str, half: bool
) -> None:
    from vergence.pipelines.recipe import load_recipe
    from vergence.platform import yaml
    from vergence.platform.runs import commit as commits
    from vergence.platform.runs.run import Run

    for name in ("first", "hit", "last"):
        run = Run(name)
        run.path.mkdir()
        recipe = load_recipe("simclr-cifar10").dump()
        run.recipe_file.write_text(yaml.dump(recipe))
        run.remember(id=name, version=1, finished=True)
        for step in (3, 7):
            facts = {"step": step, "counts": {}, "recipe": recipe, "run": {"id": name}}
            commits.write(run.commits, {}, facts, "a", owned=lambda: True)
    damaged = home / "hit" / DAMAGE[what]
    if what == "lock":
        damaged.write_text('{"host": "x", "pid": 3, "started": 4}')
    os.truncate(damaged, damaged.stat().st_size // 2 if half else 0)

    assert cli.main(["runs", "list", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in runs] == ["finished", "damaged", "finished"]
    assert [run["step"] for run in runs] == [7, 3 if what == "manifest" else 7, 7]
    assert [run["method"] for run in runs] == ["simclr"] * 3
    assert cli.main(["runs", "list"]) == 0
    assert "damaged" in capsys.readouterr().out
    assert cli.main(["runs", "show", "first"]) == 0
    capsys.readouterr()
    assert cli.main(["runs", "show", "hit"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"run hit is damaged: {DAMAGE[what].removesuffix('/manifest.json')} is not whole" in line
    assert f"goes on from step {runs[1]['step']}" in line


def test_an_encoder_that_does_not_exist_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for encoder in ("nothing", "models:/nothing@champion", "no/such/file.pt2"):
        assert cli.main(["evaluate", encoder, "--train", "a", "--test", "b"]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert "nothing" in lines[0] or "file.pt2" in lines[0]


def test_a_full_disk_and_our_own_errors_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vergence.pipelines import runs

    def full(_options: object) -> None:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr(runs, "main", full)
    assert cli.main(["runs", "list"]) == 1
    assert "no space left" in capsys.readouterr().err

    def mistaken(_options: object) -> None:
        raise UserError("recipe: wrong\nin two lines")

    monkeypatch.setattr(runs, "main", mistaken)
    assert cli.main(["runs", "list"]) == 2
    assert capsys.readouterr().err == "vergence: recipe: wrong in two lines\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain"], "required: RECIPE;"),
        (["runs", "shw"], "invalid choice: 'shw'"),
        (["pretrain", "digits", "--dry"], "digits"),
        (["embed", "junk.pt2", "images", "out.parquet"], "junk.pt2: not an exported encoder"),
        (["embed", "junk.pt2", "images", "out.txt"], "out.txt: embeddings are written as parquet"),
        (["shards", "index", "fold*"], "matches no file, only"),
        (["shards", "pack", "junk.pt2", "out"], "neither a folder of images nor a .parquet file"),
        (["shards", "pack", "images", "junk.pt2"], "junk.pt2"),
        (["shards", "pack", "sklearn:digits?size=2000000", "out"], "1 to 4,096 pixels"),
    ],
)
def test_every_mistake_is_one_line_and_exit_2(
    home: Path,
    arguments: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "junk.pt2").write_bytes(b"junk" * 100)
    try:
        code: object = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    lines = capfd.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (2, 1), lines
    assert message in lines[0]


def test_a_state_folder_that_is_no_utf8_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert cli.main(["pretrain", "simclr-cifar10"]) == 2
    assert (
        r"/caf\xe9: torch and MLflow cannot write into a folder that is no UTF-8" in capsys.readouterr().err
    )


def test_python_m_takes_nothing_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("argparse.py", "random.py", "typing.py"):
        (tmp_path / name).write_text("raise ImportError('imported from the current folder')")
    command = [sys.executable, "-m", "vergence.pipelines.cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_settings_may_stand_behind_an_option(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = "data.train=nowhere/*.tar"
    assert cli.main(["pretrain", "simclr-cifar10", "--name", "second", pattern, "--dry-run"]) == 2
    assert "nowhere/*.tar: matches no shard" in capsys.readouterr().err


def test_the_bare_command_is_its_help_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "pretrain" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vergence 0.")


def test_runs_are_renamed_and_deleted_but_not_while_they_work(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vergence.platform.runs.run import Run, locked

    Run("a").path.mkdir()
    Run("a").remember(id="x", version=4)
    assert cli.main(["runs", "rename", "a", "index"]) == 2
    assert "runs rename index: is reserved" in capsys.readouterr().err
    monkeypatch.chdir(home.parent)
    assert cli.main(["runs", "rename", "a", "b"]) == 0
    assert capsys.readouterr().out == f"{home.name}/b: was a; go on with --name b\n"
    assert Run("b").facts().id == "x"
    assert not Run("a").path.exists()
    Run("a").path.mkdir()
    assert cli.main(["runs", "rename", "b", "a"]) == 2
    capsys.readouterr()
    with locked(Run("b")):
        assert cli.main(["runs", "rm", "b", "--yes"]) == 2
        assert "a process is working on run b" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.main(["runs", "rm", "b"]) == 2  # nobody can be asked
    assert "give --yes" in capsys.readouterr().err
    assert Run("b").path.exists()
    assert cli.main(["runs", "rm", "b", "--yes"]) == 0
    assert "version 4 stays in the registry" in capsys.readouterr().out
    assert not Run("b").path.exists()
    assert cli.main(["runs", "rm", "b", "--yes"]) == 2


def test_deleting_asks(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vergence.platform.runs.run import Run

    Run("a").path.mkdir()
    Run("a").remember(id="x")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for answer, there in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert cli.main(["runs", "rm", "a"]) == 0
        assert Run("a").path.exists() == there


def test_reserved_names_say_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "digits", "--name", "features"]) == 2
    assert "--name features: is reserved" in capsys.readouterr().err


def test_nearest_lists_what_is_valid() -> None:
    assert nearest("tempratur", ["temperature", "lr"]) == "did you mean temperature? valid: lr, temperature"
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"


def test_an_interruption_while_modules_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert cli.main(["look", "mine", "photos/"]) == 130
    assert capsys.readouterr().err == "vergence: interrupted\n"
