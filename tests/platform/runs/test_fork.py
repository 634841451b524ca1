"""What a fork takes over."""

import json
from pathlib import Path

import pytest
import torch

from vergence.platform.errors import UserError
from vergence.platform.runs import commit as commits
from vergence.platform.runs.fork import fork, unfork
from vergence.platform.runs.past import Past
from vergence.platform.runs.run import Run
from vergence.platform.schema import SCHEMA


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))


def test_a_fork_takes_the_state_and_nothing_of_the_old_runs_past() -> None:
    old, new, state = Run("old"), Run("new"), {"model.w": torch.arange(3.0)}
    past = {"id": "a1", "mlflow_run": "m", "data_digest": "d", "precision": "bf16"}
    facts = {"step": 9, "score": 0.5, "counts": {"bad": 2}, "monitor_due": True, "run": past}
    commits.write(old.commits, state, facts, "attempt", owned=lambda: True)
    fork(old, new)
    start = commits.newest_intact(new.commits)
    assert torch.equal(commits.load_state(start)["model.w"], state["model.w"])
    assert (start.step, start.score, start.monitor_due) == (0, None, False)
    assert start.manifest["counts"] == {"bad": 0}
    assert new.facts().dump().keys() == {"schema", "id"}
    assert new.facts().id not in (None, "", "a1")
    assert not Past.read(new).has_begun


def test_a_fork_that_has_trained_nothing_is_taken_back_and_one_that_has_is_not() -> None:
    old, new = Run("old"), Run("new")
    commits.write(old.commits, {"w": torch.ones(1)}, {"step": 9, "counts": {}}, "a", owned=lambda: True)
    assert fork(old, new)
    assert not fork(old, new)
    unfork(new)
    assert not new.path.exists()
    fork(old, new)
    commits.write(new.commits, {"w": torch.ones(1)}, {"step": 3, "counts": {}}, "a", owned=lambda: True)
    unfork(new)
    assert commits.newest(new.commits).step == 3


def test_the_state_of_an_older_schema_may_be_forked() -> None:
    old, new = Run("old"), Run("new")
    made = commits.write(
        old.commits, {"w": torch.ones(1)}, {"step": 9, "counts": {}}, "a", owned=lambda: True
    )
    manifest = {name: value for name, value in made.manifest.items() if name != "schema"}
    (made.path / commits.MANIFEST).write_text(json.dumps(manifest))
    fork(old, new)
    assert Past.read(new).commit.manifest["schema"] == SCHEMA


def test_a_run_without_a_commit_cannot_be_forked() -> None:
    with pytest.raises(UserError, match="run nobody has no commit"):
        fork(Run("nobody"), Run("new"))
