"""`vergence tune`: a real search that is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs_for_real import family, kill_everything, start, vergence
from small_search import ONE_WORKER, SEARCH

from vergence.pipelines import cli
from vergence.platform import yaml
from vergence.platform.search.trials import Trial, read_trials

CALLER = """
import json, sys
import ray
from searches_for_real import free_again
from vergence.pipelines import tune

ray.init(address="local", num_cpus=6, include_dashboard=True, log_to_driver=False, object_store_memory=600 << 20)
recipe, search, *overrides = sys.argv[1:]
result = tune(recipe, search, overrides, name="s")
print(json.dumps({"result": result.dump(), "cpus": free_again()}))
"""


@pytest.fixture(scope="module")
def place(place: Path) -> Path:
    """With a search too."""
    (place / "s.yaml").write_text(yaml.dump(SEARCH))
    return place


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def command(place: Path) -> list[str]:
    return ["tune", str(place / "tiny.yaml"), str(place / "s.yaml"), *ONE_WORKER]


def in_a_session(place: Path, home: Path, recipe: str, searched: str, *overrides: str) -> dict[str, Any]:
    """A search in a session of the caller's, and what is free of it afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", CALLER, str(place / recipe), str(place / searched), *ONE_WORKER, *overrides],
        env={
            **os.environ,
            "VERGENCE_HOME": str(home),
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("{"))
    )
    return found


def wait_for(home: Path, process: subprocess.Popen, wanted: int, timeout_s: float = 180) -> list[Trial]:
    """Until so many results are there."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        trials = read_trials(home / "s")
        if sum(len(trial.results) for trial in trials) >= wanted:
            return trials
        assert process.poll() is None, f"ended with {process.returncode}"
        time.sleep(0.1)
    raise TimeoutError(f"no {wanted} results in {timeout_s:g} s")


class Searched:
    """A search whose driver was killed after its first result and that another one has brought to its end."""

    def __init__(self, place: Path) -> None:
        self.home = place / "home"
        log = place / "killed.log"
        process = start(self.home, *command(place), log=log)
        try:
            self.before = wait_for(self.home, process, 1)
        finally:
            kill_everything(process)
        self.after = in_a_session(place, self.home, "tiny.yaml", "s.yaml")


@pytest.fixture(scope="module")
def searched(place: Path) -> Searched:
    return Searched(place)


def test_a_killed_search_goes_on_and_ends_with_every_cpu_free(searched: Searched) -> None:
    result = searched.after["result"]
    assert result["status"] == "finished"
    assert sorted((trial["verdict"], trial["epochs"]) for trial in result["trials"]) == [
        ("dead", 0), ("finished", 2), ("stopped", 1)
    ]  # fmt: skip
    free, total = searched.after["cpus"]
    assert free == total == 6


def test_what_was_done_before_the_kill_was_not_done_again(searched: Searched) -> None:
    done = [trial for trial in searched.before if trial.results]
    now = {trial["number"]: trial for trial in searched.after["result"]["trials"]}
    assert done
    for trial in done:
        assert now[trial.number]["results"][0]["ended_s"] == trial.results[0].ended_s


def test_the_dead_trial_says_why_and_the_others_have_scores(searched: Searched) -> None:
    result = searched.after["result"]
    (dead,) = [trial for trial in result["trials"] if trial["verdict"] == "dead"]
    assert "batch.global=4096 is more than the 576 training samples" in dead["reason"]
    assert result["winner"]["score"] > 0.3  # chance is .25
    assert (
        result["least_loss"]["number"] == result["winner"]["number"]
    )  # the only one that was trained in full
    assert result["epochs"] == 3


def test_the_folder_has_table_pictures_and_the_winners_recipe(searched: Searched) -> None:
    folder = searched.home / "s"
    table = json.loads((folder / "table.json").read_text())
    assert table == searched.after["result"]
    best = yaml.read(folder / "best.yaml")
    assert best["batch"]["global"] == table["winner"]["parameters"]["batch.global"]
    assert (best["epochs"], best["track"]["register"]) == (3, "tiny")  # the user's, not the search's
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "scores.png",
        "parallel.png",
        "budget.png",
    }


def test_mlflow_has_the_search_with_its_trials_below(searched: Searched) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{searched.home}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"s", "s/000", "s/001"}
    for name in ("s/000", "s/001"):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["s"].info.run_id
    assert runs["s"].info.status == "FINISHED"
    assert runs["s"].data.metrics["best_knn"] == searched.after["result"]["winner"]["score"]
    artifacts = {file.path for file in client.list_artifacts(runs["s"].info.run_id)}
    assert {"plots", "table.json", "recipe"} <= artifacts


def test_a_finished_search_is_a_no_op_and_prints_its_table(
    searched: Searched, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(searched.home))
    assert cli.main(command(place)) == 0
    said = capsys.readouterr()
    assert "finished, nothing to do" in said.err
    for words in ("least loss", "best", "batch.global=4096 is more", "3 of 6"):
        assert words in said.out
    assert cli.main([*command(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["winner"] == searched.after["result"]["winner"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("search.space={batch.global: {choice: [64, 16]}}", "search.space.batch.global.choice"),
        ("optim.lr=0.2", "recipe.optim.lr 0.1 -> 0.2"),
    ],
)
def test_the_same_name_with_another_space_or_recipe_is_refused(
    searched: Searched,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    reason: str,
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(searched.home))
    assert cli.main([*command(place), setting]) == 2
    said = capsys.readouterr().err
    assert "search s was started otherwise" in said
    assert reason in said


def test_a_run_and_a_search_do_not_share_a_name(
    searched: Searched, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(searched.home))
    assert cli.main(["pretrain", str(place / "tiny.yaml"), "--name", "s"]) == 2
    assert "there is a search of this name" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "space": {"optim.lr": {"choice": [0.1, 0.2, 0.05, 0.4]}},
            "scheduler": {"name": "asha", "factor": 2},
        },
        {
            "space": {"optim.lr": {"loguniform": [0.01, 1]}},
            "algorithm": "tpe",
            "scheduler": {"name": "none"},
            "budget": {"epochs": 1, "trials": 4, "concurrent": 2},
            "objective": "linear",
        },
    ],
)
def test_asha_and_optuna_end_with_every_cpu_free(
    place: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    (place / "slow.yaml").write_text(yaml.dump({**SEARCH, **changes}))
    found = in_a_session(place, tmp_path / "home", "tiny.yaml", "slow.yaml")
    verdicts = [trial["verdict"] for trial in found["result"]["trials"]]
    assert len(verdicts) == 4
    assert set(verdicts) <= {"finished", "stopped"}
    assert found["result"]["winner"]["score"] > 0.3
    assert found["cpus"] == [6, 6]


@pytest.mark.slow
def test_the_winner_is_trained_in_full_and_registered(searched: Searched, place: Path) -> None:
    done = vergence(searched.home, *command(place), "--retrain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["winner"] == searched.after["result"]["winner"]
    run = json.loads((searched.home / "s-best" / "run.json").read_text())
    assert (run["finished"], run["version"]) == (True, 1)


@pytest.mark.slow
def test_ctrl_c_leaves_a_table_and_a_killed_trial_is_marked(place: Path, tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    process = start(home, *command(place), "search.scheduler.name=none", log=log)
    wait_for_workers(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, log.read_text()
    assert json.loads((home / "s" / "table.json").read_text())["status"] == "interrupted"
    assert "the same command goes on from there" in log.read_text()
    process = start(home, *command(place), "search.scheduler.name=none", log=log)
    wait_for_workers(process)
    os.kill(json.loads((home / "s" / "000" / "lock.json").read_text())["pid"], signal.SIGKILL)
    assert process.wait(240) == 0, log.read_text()
    trials = json.loads((home / "s" / "table.json").read_text())["trials"]
    assert sorted(trial["verdict"] for trial in trials) == ["dead", "dead", "finished"]
    assert "its process died" in {trial["reason"] for trial in trials}


def wait_for_workers(process: subprocess.Popen, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any("RayTrainWorker" in " ".join(member.cmdline()) for member in family(process)):
            return
        time.sleep(0.2)
    raise TimeoutError("no worker started")
