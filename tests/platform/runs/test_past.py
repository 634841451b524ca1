"""What a run folder holds, read once: the newest whole commit, and the facts, recipe and outcome that go with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from vergence.platform import yaml
from vergence.platform.runs import commit as commits
from vergence.platform.runs.commit import Commit
from vergence.platform.runs.facts import RunFacts
from vergence.platform.runs.outcome import Outcome, leave_outcome, outcome_file, reserve_outcome
from vergence.platform.runs.past import Past
from vergence.platform.runs.run import Run

RECIPE = {"seed": 1, "track": {"experiment": "x"}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    run = Run("r")
    run.logs.mkdir(parents=True)
    return run


def commit(run: Run, step: int, /, **facts: Any) -> Commit:
    return commits.write(run.commits, {}, {"step": step, "counts": {}, **facts}, "a", owned=lambda: True)


def test_an_empty_folder_has_no_past(run: Run) -> None:
    assert Past.read(run) == Past("r", None, RunFacts(), None, None)
    assert Past.read(run).start_step == 0


def test_a_run_that_was_stopped_is_read_as_it_stands(run: Run) -> None:
    run.remember(id="a1", version=2)
    commit(run, 3, recipe=RECIPE)
    newest = commit(run, 6, recipe=RECIPE | {"seed": 2})
    path = outcome_file(run.path, "a")
    reserve_outcome(path)
    leave_outcome(path, Outcome("interrupted"))
    past = Past.read(run)
    assert past.commit == newest
    assert (past.facts.id, past.facts.version, past.start_step, past.has_begun) == ("a1", 2, 6, True)
    assert past.recipe["seed"] == 2
    assert past.outcome == Outcome("interrupted")


def test_a_commit_that_is_not_whole_is_passed_over_and_facts_come_from_the_one_before(run: Run) -> None:
    commit(run, 3, run={"id": "a1", "mlflow_run": "m"}, recipe=RECIPE)
    last = commit(run, 6, run={"id": "a1"}, recipe=RECIPE)
    (last.path / commits.STATE).write_bytes(b"")
    past = Past.read(run)
    assert past.start_step == 3
    assert past.facts.mlflow_run == "m"


def test_no_byte_of_a_state_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(run, 3, recipe=RECIPE)
    monkeypatch.setattr(commits, "_sha256", lambda path: pytest.fail("a state was hashed"))
    assert Past.read(run).start_step == 3


def test_a_fork_is_bound_by_its_own_recipe(run: Run) -> None:
    commit(run, 0, recipe=RECIPE, forked_from={"run": "other", "step": 9})
    assert Past.read(run).recipe is None
    run.recipe_file.write_text(yaml.dump(RECIPE | {"seed": 5}))
    past = Past.read(run)
    assert past.recipe["seed"] == 5
    assert not past.has_begun


@pytest.mark.parametrize("text", ["", "seed: 1\n", "seed: [", "\0\0"])
def test_half_a_recipe_is_none(run: Run, text: str) -> None:
    run.recipe_file.write_text(text)
    assert Past.read(run).recipe is None


def test_facts_that_another_version_understood_otherwise_are_none(run: Run) -> None:
    (run.path / "run.json").write_text(json.dumps({"schema": 99, "micro": "adaptive"}))
    assert Past.read(run).facts == RunFacts()
