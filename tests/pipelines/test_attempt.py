"""What an attempt decides before anything starts."""

import torch

from vergence.pipelines.attempt import fork
from vergence.platform.runs import commit as commits
from vergence.platform.runs.run import Run


def test_a_fork_takes_the_state_and_nothing_of_the_old_runs_past(tmp_path, monkeypatch):
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    old, new, state = Run("old"), Run("new"), {"model.w": torch.arange(3.0)}
    past = {"id": "a1", "mlflow_run": "m", "data_digest": "d", "precision": "bf16"}
    facts = {"step": 9, "score": 0.5, "counts": {"bad": 2}, "monitor_due": True, "run": past}
    commits.write(old.commits, state, facts, "attempt", owned=lambda: True)
    fork(old, new)
    start = commits.newest_intact(new.commits)
    assert torch.equal(commits.load_state(start)["model.w"], state["model.w"])
    assert (start.step, start.score, start.monitor_due) == (0, None, False)
    assert start.manifest["counts"] == {"bad": 0}
    assert new.facts().keys() == {"id"}
    assert new.facts()["id"] not in ("", "a1")
