"""Records reach MLflow once, in one MLflow run, whatever happens in between."""

import json
import logging
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow_stores import Refusing, forwarding, free_port
from pydantic import ValidationError

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.mlflow_store import store, tracking_uri
from vergence.platform.runs.run import Run
from vergence.platform.runs.track import TrackConfig, Tracker

EXPERIMENT = "tracked"


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")


@pytest.fixture(params=["sqlite", "server"])
def either_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """SQLite, or a server, whose answers are of other types; both keep what other tests left."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server"))
    return request.param


def begun(name: str = "r") -> Run:
    """A run with its identity and five records."""
    run = Run(name)
    run.logs.mkdir(parents=True)
    run.remember(id=f"{name}-{run.path.parent.name}")
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


def test_records_arrive_once_and_the_run_ends_with_its_status() -> None:
    run = begun()
    run_id = track(run)
    assert losses(run_id) == [0, 1, 2, 3, 4]
    [made] = mlflow_runs()
    assert made.info.status == "FINISHED"
    assert made.info.run_name == "r"
    assert made.data.params == {"lr": "0.1"}
    assert made.data.tags["vergence.run"] == run.facts().id
    assert made.data.tags["code"] == "1"


def test_a_folder_that_forgot_its_mlflow_run_goes_on_with_it(either_store: str) -> None:
    """As after a power cut: run.json is made anew, with the identity alone."""
    run = begun()
    others = len(mlflow_runs())
    first = track(run, "KILLED")
    (run.path / "run.json").write_text(json.dumps({"id": run.facts().id}))
    with (run.logs / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "time": 1e9 + 5, "loss": 0.1}) + "\n")
    assert track(run) == first
    assert len(mlflow_runs()) == others + 1
    assert losses(first) == [0, 1, 2, 3, 4, 5]
    assert run.facts().mlflow_run == first


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_kill_just_after_the_mlflow_run_was_made_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Run, **facts: Any) -> None:
        raise SystemExit  # ends the tracker's thread before it can write down the MLflow run

    run = begun()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "remember", killed)
        Tracker(run, EXPERIMENT, {"lr": 0.1}, {"code": "1"}, print)._thread.join()
    assert run.facts().mlflow_run is None
    [made] = mlflow_runs()
    assert track(run) == made.info.run_id
    assert len(mlflow_runs()) == 1


def test_it_leaves_environment_and_loggers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")  # the user's own
    track(begun("first"))  # MLflow is imported
    logger = logging.getLogger("mlflow")
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    before = dict(os.environ)
    tracker = Tracker(begun(), EXPERIMENT, {}, {}, print)
    tracker.check()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert logger.level == logging.CRITICAL
    assert tracker.close("FINISHED", {})
    assert dict(os.environ) == before
    assert logger.level == logging.INFO


def test_each_run_has_an_mlflow_run_of_its_own() -> None:
    assert track(begun("one")) != track(begun("two"))
    assert len(mlflow_runs()) == 2


def test_a_store_that_refuses_ends_the_command_before_it_trains(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    said: list[str] = []
    tracker = Tracker(begun(), EXPERIMENT, {}, {}, said.append)
    with pytest.raises(
        UserError, match=r"refuses: .*fedcba987654.*another version of MLflow.*nothing was trained"
    ):
        tracker.check()
    assert not tracker.close("FAILED", {})
    assert said == []  # once is enough


def test_a_deleted_experiment_refuses(either_store: str) -> None:
    with store(tracking_uri()) as client:
        deleted = client.create_experiment(f"deleted {EXPERIMENT}")
        client.delete_experiment(deleted)
    tracker = Tracker(begun(), f"deleted {EXPERIMENT}", {}, {}, print)
    with pytest.raises(UserError, match=f"mlflow experiments restore --experiment-id {deleted}`"):
        tracker.check()


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_server_that_turns_us_away_refuses_at_once(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with Refusing(status, "go away") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:s3cret@127.0.0.1:{server.port}")
        tracker = Tracker(begun(), EXPERIMENT, {}, {}, print)
        with pytest.raises(UserError, match=f"refuses: HTTP {status}") as caught:
            tracker.check()
        assert "s3cret" not in str(caught.value)
        tracker.close("FAILED", {})


def test_a_damaged_database_refuses_at_once_and_can_be_put_aside(tmp_path: Path, empty_store: Path) -> None:
    run = begun()
    track(run)
    (tmp_path / "mlflow.db").write_bytes(bytes(range(256)) * 99)
    tracker = Tracker(run, EXPERIMENT, {}, {}, print)
    with pytest.raises(UserError, match="file is not a database; move it away"):
        tracker.check()
    tracker.close("FAILED", {})
    shutil.copy(empty_store, tmp_path / "mlflow.db")  # what MLflow makes where there is none
    assert losses(track(run)) == [0, 1, 2, 3, 4]


def test_an_absent_server_stops_nothing_and_gets_everything_when_it_comes(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MLflow run is there for a hand-over, though the tracker would have waited before it tries again."""
    (tmp_path / "mlflow.db").unlink()
    port, said = free_port(), list[str]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:s3cret@127.0.0.1:{port}")
    tracker = Tracker(begun(), EXPERIMENT, {}, {}, said.append)
    tracker.check()
    [line] = said
    assert "does not answer; training goes on, the records wait in" in line
    assert "s3cret" not in line
    with pytest.raises(VergenceError, match="does not answer"):
        tracker.open()
    with forwarding(port, mlflow_server):
        run_id = tracker.open()
        assert run_id == tracker.run_id == tracker.run.facts().mlflow_run
        assert tracker.close("FINISHED", {})
        assert losses(run_id) == [0, 1, 2, 3, 4]
    assert len(said) == 1


def test_a_refusal_later_is_said_in_its_words_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vergence.platform.runs.track.FLUSH_S", 0.05)
    said: list[str] = []
    tracker = Tracker(begun(), EXPERIMENT, {}, {}, said.append)
    tracker.check()
    with store(tracking_uri()) as client:
        client.delete_run(tracker.open())
    with (tracker.run.logs / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "time": 1e9, "loss": 0.1}) + "\n")
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "must be in the 'active' state" in said[0]
    assert "mlflow runs restore --run-id" in said[0]
    assert "training goes on" in said[0]
    assert not tracker.close("FINISHED", {})
    assert len(said) == 1


def test_another_store_gets_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    """MLFLOW_TRACKING_URI was changed between two attempts, and changed back."""
    run = begun()
    first = track(run, "KILLED")
    shutil.copy(empty_store, tmp_path / "other.db")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        other = track(run, "KILLED")
        assert other != first
        assert losses(other) == [0, 1, 2, 3, 4]
    assert track(run) == first
    assert losses(first) == [0, 1, 2, 3, 4]


def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    run = begun()
    (tmp_path / "note.txt").write_text("text")
    tracker = Tracker(run, "team/tracked", {}, {}, print)
    assert tracker.close("FINISHED", {"notes": tmp_path / "note.txt"})
    assert (
        tmp_path / "artifacts/team/tracked" / tracker.run_id / "artifacts/notes/note.txt"
    ).read_text() == "text"


def test_secrets_in_settings_and_tags_are_masked() -> None:
    tracker = Tracker(
        begun(), EXPERIMENT, {"data": "http://u:s3cret@h"}, {"code": "http://u:s3cret@h"}, print
    )
    assert tracker.close("FINISHED", {})
    [made] = mlflow_runs()
    assert made.data.params["data"] == made.data.tags["code"] == "http://***@h"


@pytest.mark.parametrize("field", ["experiment", "register"])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("it's", "name with"),
        ('a"b', "name with"),
        ("a`b", "name with"),
        ("a:b", "name with ':'"),
        ("a@b", "name with '@'"),
        ("100%", "name with '%'"),
        ("a?b", "name with"),
        ("a#b", "name with"),
        ("a\\b", "name with"),
        ("a\nb", "name with"),
        ("", "not empty"),
        (" a", "begin or end with a space"),
        ("x" * 251, "at most 250 bytes"),
        ("ü" * 126, "at most 250 bytes"),
        ("..", "no part of it is empty, . or .."),
        ("/a", "no part of it"),
        ("a/../b", "no part of it"),
    ],
)
def test_names_that_mlflow_cannot_hold_or_find_are_refused(field: str, name: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        TrackConfig.model_validate({field: name})


def test_a_registered_model_has_no_slash_an_experiment_may() -> None:
    with pytest.raises(ValidationError, match="registered model with '/'"):
        TrackConfig.model_validate({"register": "team/cifar"})
    assert TrackConfig.model_validate({"experiment": "team/cifar"}).experiment == "team/cifar"
