"""Records reach MLflow once, in one MLflow run, whatever happens in between."""

import json
import shutil

import pytest

from vergence.platform.mlflow_store import store, tracking_uri
from vergence.platform.runs.run import Run
from vergence.platform.runs.track import Tracker

EXPERIMENT = "tracked"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables: making them takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with store(f"sqlite:///{path}") as client:
        client.search_experiments()
    return path


@pytest.fixture(autouse=True)
def state_folder(tmp_path, monkeypatch, empty_store):
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")


def begun(name: str = "r") -> Run:
    """A run with its identity and five records."""
    run = Run(name)
    run.logs.mkdir(parents=True)
    run.remember(id=f"identity-of-{name}")
    records = [{"step": step, "time": 1e9 + step, "loss": 1 / (step + 1)} for step in range(5)]
    (run.logs / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def track(run: Run, status: str = "FINISHED", said: list[str] | None = None) -> str:
    """One tracker from its start to its end; the MLflow run that it used."""
    tracker = Tracker(run, EXPERIMENT, {"lr": 0.1}, {"code": "1"}, ([] if said is None else said).append)
    assert tracker.close(status, {})
    return tracker.run_id


def losses(run_id: str) -> list[int]:
    with store(tracking_uri()) as client:
        return [metric.step for metric in client.get_metric_history(run_id, "loss")]


def mlflow_runs() -> list:
    with store(tracking_uri()) as client:
        return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_records_arrive_once_and_the_run_ends_with_its_status():
    run_id = track(begun())
    assert losses(run_id) == [0, 1, 2, 3, 4]
    [made] = mlflow_runs()
    assert made.info.status == "FINISHED"
    assert made.info.run_name == "r"
    assert made.data.params == {"lr": "0.1"}
    assert made.data.tags["vergence.run"] == "identity-of-r"
    assert made.data.tags["code"] == "1"


def test_a_folder_that_forgot_its_mlflow_run_goes_on_with_it():
    """As after a power cut: run.json is made anew, with the identity alone."""
    run = begun()
    first = track(run, "KILLED")
    (run.path / "run.json").write_text(json.dumps({"id": "identity-of-r"}))
    with (run.logs / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "time": 1e9 + 5, "loss": 0.1}) + "\n")
    assert track(run) == first
    assert len(mlflow_runs()) == 1
    assert losses(first) == [0, 1, 2, 3, 4, 5]
    assert run.facts()["mlflow_run"] == first


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_kill_just_after_the_mlflow_run_was_made_leaves_one(monkeypatch):
    def killed(self, **facts):
        raise SystemExit  # ends the tracker's thread before it can write down the MLflow run

    run = begun()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "remember", killed)
        Tracker(run, EXPERIMENT, {"lr": 0.1}, {"code": "1"}, print)._thread.join()
    assert "mlflow_run" not in run.facts()
    [made] = mlflow_runs()
    assert track(run) == made.info.run_id
    assert len(mlflow_runs()) == 1


def test_each_run_has_an_mlflow_run_of_its_own():
    assert track(begun("one")) != track(begun("two"))
    assert len(mlflow_runs()) == 2
