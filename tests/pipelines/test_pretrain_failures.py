"""What data, disks and MLflow do to a run: nothing is lost, and one line says what is wrong."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow_stores import Refusing
from runs_for_real import start, vergence, wait_for_step, write_shards

from vergence.platform.runs import commit as commits


@pytest.mark.slow
def test_truncated_jpegs_are_replaced_counted_and_named(place: Path) -> None:
    shards = write_shards(place / "broken", broken=(5, 17))
    home = place / "bad"
    done = vergence(
        home, "pretrain", str(place / "tiny.yaml"), f"data.train={shards}", "epochs=1", "track.register=null"
    )
    assert done.returncode == 0, done.stderr
    assert commits.newest(home / "tiny" / "commits").manifest["counts"]["bad"] == 2
    assert "2 unreadable samples were replaced" in done.stderr
    logs = "".join(path.read_text() for path in (home / "tiny" / "logs").glob("rank-*.log"))
    assert "train-000000.tar:00005" in logs
    too_many = vergence(
        place / "bad2", "pretrain", str(place / "tiny.yaml"), f"data.train={shards}", "data.max_bad=0.001"
    )
    assert too_many.returncode == 1
    assert "raise data.max_bad" in too_many.stderr
    assert "Traceback" not in too_many.stderr


def test_a_full_disk_stops_the_run_and_leaves_the_last_commit(
    place: Path, small_disk: Callable[[Path], Path]
) -> None:
    """The commits folder is a tmpfs with room for two commits and no third."""
    home = place / "full"
    folder = small_disk(home / "tiny" / "commits")
    (folder / "ballast").write_bytes(bytes(600 << 10))
    full = vergence(home, "pretrain", str(place / "tiny.yaml"), "commit.keep=9", "track.register=null")
    assert full.returncode == 1
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert commits.newest(folder).step == int(re.search(r"commit at step (\d+) failed", full.stderr)[1]) - 3


def attempts(run: Path) -> int:
    """How often the ranks were started."""
    logs = "".join(path.read_text() for path in (run / "logs").glob("rank-*.log"))
    return logs.count("rank 0 of 2")


@pytest.mark.slow
def test_a_disk_that_fills_up_with_metrics_is_told_after_one_attempt(
    place: Path, small_disk: Callable[[Path], Path]
) -> None:
    home = place / "full-logs"
    logs = small_disk(home / "tiny" / "logs")
    (logs / "ballast").write_bytes(bytes((1 << 20) - (16 << 10)))
    full = vergence(home, "pretrain", str(place / "tiny.yaml"), "track.register=null")
    assert full.returncode == 1, full.stderr
    assert full.stderr.count("No space left on device") == 1
    assert "Traceback" not in full.stderr
    assert attempts(home / "tiny") == 1


def test_a_shard_that_is_cut_off_during_the_run_is_told_after_one_attempt(place: Path) -> None:
    """By the reader tasks, whichever rank they work for."""
    shards, home, log = write_shards(place / "shrunk"), place / "shrunk-home", place / "shrunk.log"
    process = start(
        home, "pretrain", str(place / "tiny.yaml"), f"data.train={shards}", "epochs=1000", log=log
    )
    wait_for_step(home / "tiny", 1, process)
    for path in (place / "shrunk").glob("*.tar"):
        os.truncate(path, 4096)
    assert process.wait(120) == 1, log.read_text()
    said = log.read_text()
    assert "it has changed during the run" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert attempts(home / "tiny") == 1
    assert commits.newest(home / "tiny" / "commits") is not None


@pytest.mark.slow
def test_an_mlflow_server_that_does_not_answer_stops_nothing(place: Path) -> None:
    """When it is back, the version belongs to the run of the metrics; the whole folder can be moved then.

    The name of the state folder means something in an address, and the server's address holds a secret.
    """
    home, secret = place / "a b%2Fc%20d?e#fü", "s3cret-pa55"
    address = f"http://user:{secret}@127.0.0.1:9/?token={secret}"
    command = ("pretrain", str(place / "tiny.yaml"), "epochs=1")
    away = vergence(home, *command, MLFLOW_TRACKING_URI=address)
    assert away.returncode == 1
    assert "MLflow at http://***@127.0.0.1:9/?token=*** does not answer; training goes on" in away.stderr
    assert "trained and exported" in away.stderr
    assert (home / "tiny" / "exports" / "encoder.pt2").exists()
    assert secret not in away.stdout + away.stderr
    assert all(secret.encode() not in path.read_bytes() for path in home.rglob("*") if path.is_file())
    back = vergence(home, *command)
    assert back.returncode == 0, back.stderr
    moved = home.rename(place / "moved")
    facts = json.loads((moved / "tiny" / "run.json").read_text())
    assert facts["finished"]
    assert facts["version"] == 1
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    assert client.get_model_version("tiny", "1").run_id == facts["mlflow_run"]
    assert {experiment.name for experiment in client.search_experiments()} == {"Default", "tiny"}
    history = client.get_metric_history(facts["mlflow_run"], "loss")
    assert [metric.step for metric in history] == list(range(9))
    shards = [str(place / "shards" / f"train-{i:06d}.tar") for i in range(2)]
    evaluated = vergence(
        moved, "evaluate", "models:/tiny@champion", "--train", shards[0], "--test", shards[1]
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "tiny/1" in evaluated.stdout


def test_a_store_that_refuses_ends_the_command_before_the_first_step(place: Path) -> None:
    home = place / "refused"
    with Refusing(403, "You shall not pass\nat all") as server:
        address = f"http://user:s3cret-pa55@127.0.0.1:{server.port}"
        refused = vergence(home, "pretrain", str(place / "tiny.yaml"), MLFLOW_TRACKING_URI=address)
    assert refused.returncode == 2
    assert (
        f"MLflow at http://***@127.0.0.1:{server.port} refuses: HTTP 403 Forbidden: You shall not pass; check"
        in refused.stderr
    )
    assert refused.stderr.count("refuses") == 1
    assert not (home / "tiny" / "logs" / "metrics.jsonl").exists()
