"""Real stores in trouble: which say no, which are only away, and what a user is told."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow_stores import Refusing, free_port

from vergence.platform.mlflow_errors import explain, is_outage
from vergence.platform.mlflow_store import store


@pytest.fixture
def database(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def error_of(
    uri: str,
    call: Callable[[mlflow.MlflowClient], object] = lambda client: client.get_experiment_by_name("x"),
) -> BaseException:
    with pytest.raises(Exception) as caught, store(uri) as client:  # noqa: PT011  whatever MLflow raises
        call(client)
    return caught.value


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "You are not authenticated.\nSee the docs", "HTTP 401 Unauthorized: You are not authenticated.; ch"),
        (403, "<html>\n<h1>Forbidden</h1></html>", "HTTP 403 Forbidden: Forbidden; check MLFLOW_TRACKING_USERNAME"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}', "_DENIED: Permission denied; check"),
        (429, "too many", "HTTP 429 Too Many Requests; mend"),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "quota exceeded"}', "PARAMETER_VALUE: quota exc"),
        (404, "not found", "HTTP 404 Not Found: not found; mend that, or set MLFLOW_TRACKING_URI"),
        (302, "", "HTTP 302 Found; mend"),
        (200, "<html>a login page</html>", "the response body was not in a valid JSON format"),
    ],
)  # fmt: skip
def test_a_server_that_says_no_refuses_in_its_own_words(status: int, body: str, said: str) -> None:
    with Refusing(status, body) as server:
        error = error_of(f"http://127.0.0.1:{server.port}")
    assert not is_outage(error)
    line = explain(error, "HERE")
    assert line.startswith("MLflow at HERE refuses: ")
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("status", [500, 502, 503, 507, 408])
def test_a_server_in_trouble_is_away(status: int) -> None:
    with Refusing(status, "oops") as server:
        error = error_of(f"http://127.0.0.1:{server.port}")
    assert explain(error, "HERE") == "MLflow at HERE does not answer"


def test_no_server_is_away() -> None:
    assert is_outage(error_of(f"http://127.0.0.1:{free_port()}"))
    assert is_outage(error_of("http://no-such-host.invalid"))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///nowhere/mlruns", "maintenance mode"),
        ("nowhere/mlruns", "maintenance mode"),
        ("gopher://host", "unsupported URI"),
        ("postgresql+nodriver://user@127.0.0.1/db", "nodriver"),
        ("http://127.0.0.1:99999", "Invalid url"),
    ],
)
def test_an_address_that_is_no_store_refuses(
    uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(uri)
    assert not is_outage(error)
    assert said in explain(error, "HERE")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("statement", ["", "DROP TABLE runs"])
def test_a_database_of_another_version_refuses(database: Path, statement: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
        connection.execute(statement)
    error = error_of(f"sqlite:///{database}")
    assert not is_outage(error)
    assert "fedcba987654" in explain(error, "HERE")
    assert "another version of MLflow made this database" in explain(error, "HERE")


def test_deleted_experiments_and_runs_say_how_to_restore_them(database: Path) -> None:
    uri = f"sqlite:///{database}"
    with store(uri) as client:
        gone, kept = client.create_experiment("gone"), client.create_experiment("kept")
        client.delete_experiment(gone)
        run_id = client.create_run(kept).info.run_id
        client.delete_run(run_id)
    error = error_of(uri, lambda client: client.create_run(gone))
    assert (
        f"`mlflow experiments restore --experiment-id {gone}`, or choose another track.experiment"
        in explain(error, uri)
    )
    error = error_of(uri, lambda client: client.update_run(run_id, status="RUNNING"))
    assert f"`mlflow runs restore --run-id {run_id}`" in explain(error, uri)


def test_a_locked_database_is_away_and_a_broken_one_refuses() -> None:
    for message, away in (("database is locked", True), ("attempt to write a readonly database", False)):
        assert is_outage(sqlite3.OperationalError(message)) == away
    assert not is_outage(sqlite3.DatabaseError("file is not a database"))
