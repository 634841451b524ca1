"""`vergence.pipelines` as the door from Python."""

import resource
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import vergence.pipelines
from vergence.pipelines import UserError, load_encoder, load_recipe, pretrain


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_it_promises_is_there_and_nothing_else_is_promised() -> None:
    assert sorted(vergence.pipelines.__all__) == vergence.pipelines.__all__
    assert vergence.pipelines._HOMES.keys() == set(vergence.pipelines.__all__)
    for name in vergence.pipelines.__all__:
        thing = getattr(vergence.pipelines, name)
        assert thing.__name__ == name
        assert isinstance(thing, FunctionType | type)
    with pytest.raises(AttributeError, match="no 'pretran'; it has"):
        vergence.pipelines.pretran  # noqa: B018


def test_a_verb_is_a_function_whatever_was_imported_before() -> None:
    code = """
import importlib
module = importlib.import_module("vergence.pipelines.evaluate")
from vergence.pipelines import evaluate, pretrain
from vergence.pipelines.evaluate import configure
print(evaluate is module.evaluate, callable(pretrain), importlib.import_module("vergence.pipelines.evaluate") is module)
"""
    assert python(code) == "True True True"


def test_the_door_itself_loads_nothing() -> None:
    code = """
import sys
import vergence.platform.errors
before = set(sys.modules)
import vergence.pipelines
print(sorted(set(sys.modules) - before))
"""
    assert python(code) == "['vergence.pipelines']"


def test_help_takes_less_than_half_a_second() -> None:
    """Of processor time, which other processes do not lengthen; the best of three."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "vergence.pipelines.cli", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_mistakes_are_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="did you mean simclr-cifar10"):
        pretrain("simclr-cifar")
    with pytest.raises(UserError, match=r"method\.temprature is not a setting"):
        load_recipe("simclr-cifar10", ["method.temprature=1"])
    recipe = load_recipe("simclr-cifar10", ["data.train=nowhere/*.tar"])
    with pytest.raises(UserError, match="a Recipe comes with a name"):
        pretrain(recipe)
    with pytest.raises(UserError, match="nowhere"):
        pretrain(recipe, name="first")
    assert not [path for path in tmp_path.iterdir() if path.name != "first"]
    with pytest.raises(UserError, match="no such run"):
        load_encoder("second")
