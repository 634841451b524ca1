"""A search before anything starts: what is refused, what is planned, what a trial finds done."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import ONE_WORKER, SEARCH

from vergence.pipelines import cli, search
from vergence.pipelines.shipped import file_of, shipped
from vergence.pipelines.trial import TrialWork, passed_on, recipe_of
from vergence.pipelines.tune import asked as asked_for
from vergence.platform import yaml
from vergence.platform.errors import UserError
from vergence.platform.runs.stop import Stop
from vergence.platform.search.trials import Result, Trial, read_trials, write_trial


@pytest.fixture(scope="module")
def place(place: Path) -> Path:
    """With a search too."""
    (place / "s.yaml").write_text(yaml.dump(SEARCH))
    return place


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def asked(place: Path, *overrides: str, **changes: Any) -> search.Search:
    (place / "other.yaml").write_text(yaml.dump({**SEARCH, **changes}))
    return asked_for(str(place / "tiny.yaml"), str(place / "other.yaml"), [*ONE_WORKER, *overrides], "s")


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ({"method.temprature": {"choice": [0.1]}}, "method.temprature is not a setting .did you mean temperature"),
        ({"method.temperature": {"choice": [0.1, -1]}}, "search: method.temperature=-1: method.temperature: input"),
        ({"method.momentum": {"choice": [0.9]}}, "method.momentum is not a setting"),
        ({"optim.lr.x": {"choice": [1]}}, "optim.lr.x does not lead to a setting"),
        ({"optim.name": {"choice": ["sgd", "adamm"]}}, "did you mean adamw"),
        ({"epochs": {"choice": [1, 2]}}, "epochs cannot be searched: the epochs of a trial are search.budget.epochs"),
        ({"data.holdout": {"choice": [0.1, 0.2]}}, "the score is measured on the holdout"),
        ({"scale.workers": {"choice": [1, 2]}}, "it changes nothing of what is learnt"),
        ({"monitor.k": {"choice": [5, 20]}}, "it changes nothing of what is learnt"),
    ],
)  # fmt: skip
def test_a_path_or_value_that_the_recipe_does_not_take_is_refused(
    place: Path, home: Path, space: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        asked(place, space=space)


def test_settings_of_recipe_and_search_are_told_apart(place: Path, home: Path) -> None:
    made = asked(place, "optim.lr=0.3", "search.budget.epochs=4", "search.seed=5")
    assert (made.recipe.optim.lr, made.recipe.epochs) == (0.3, 3)
    assert (made.config.budget.epochs, made.config.seed) == (4, 5)
    assert made.base["epochs"] == 4
    assert made.base["track"]["register"] is None


def test_shipped_searches_fit_their_recipes(home: Path) -> None:
    recipes = {"simclr": "simclr", "mocov2": "mocov2", "byol": "byol", "barlow": "barlow_twins"}
    assert len(shipped("search")) == 4
    for name in shipped("search"):
        made = asked_for(f"{recipes[name.split('-')[0]]}-cifar10", name, [], None)
        assert made.name == name
        assert made.config.num_trials >= 5


def test_a_name_that_is_none_is_answered_with_the_nearest(home: Path) -> None:
    with pytest.raises(UserError, match="did you mean simclr-temperature"):
        file_of("search", "simclr-temprature")
    with pytest.raises(UserError, match=r"no such search file"):
        file_of("search", "x.yaml")


def test_a_missing_extra_is_answered_by_the_line_that_installs_it(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vergence\[tune\]'"):
        asked(place, algorithm="tpe", scheduler={}, budget={"epochs": 2, "trials": 3})


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.holdout=0"], "data.holdout=0 leaves 0; set data.holdout"),
        (["schedule.warmup_epochs=2.5"], "schedule.warmup_epochs=2.5 is longer than the run of 2 epochs"),
    ],
)
def test_what_the_data_or_the_first_trial_do_not_allow_is_refused_before_anything_starts(
    place: Path, home: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        asked(place, *overrides).plan()
    assert not (home / "s").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    place: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(place / "tiny.yaml"), str(place / "s.yaml"), *ONE_WORKER, "--dry-run"]
    assert cli.main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["space"] == {"batch.global": "one of 64, 32, 4096"}
    assert (plan["trials"], plan["rungs"], plan["concurrent"], plan["cpus"]) == (3, [1, 2], 2, 5.02)
    assert (plan["epochs_at_most"], plan["epochs_of_all_trials_in_full"]) == (3 * 1 + 1 * 1, 6)
    assert plan["hours"] > 0
    assert cli.main(command) == 0
    assert (
        "2 workers x 1 CPUs + 2 readers x 1 CPUs + 2 trials x 0.01 + 1 = 5.02 CPUs" in capsys.readouterr().out
    )
    assert not (home / "s").exists()


def test_a_search_of_a_recipe_that_leaves_its_scale_open_shares_this_machine(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    made = asked(
        place, "scale.workers=auto", "scale.gpus_per_worker=auto", budget={"epochs": 2, "concurrent": 2}
    )
    assert "settled" not in vars(made)  # where it is only described, this machine is not asked
    plan = made.plan()
    assert (plan.need.trials, plan.need.scale.workers, plan.need.scale.gpus_per_worker) == (2, 4, 0)
    trial = recipe_of(made.shared, {}, "trial")
    assert (trial.scale.workers, trial.scale.gpus_per_worker, trial.identity()) == (
        4,
        0,
        recipe_of(made.base, {}, "trial").identity(),
    )
    assert made.recipe.scale.workers == "auto"  # of the winner at full length


def work(home: Path, stop_file: Path) -> TrialWork:
    base: dict[str, Any] = {}
    return TrialWork("s", str(home), os.getcwd(), base, "knn", "max", stop_file, None)


def test_what_a_trial_has_done_is_not_done_again(home: Path, tmp_path: Path) -> None:
    done = Result(epochs=1, score=0.5, loss=1.0, ended_s=0.0)
    write_trial(home / "s", Trial(number=0, parameters={}, results=(done,)))
    write_trial(home / "s", Trial(number=1, parameters={}, verdict="dead"))
    step = work(home, tmp_path / "STOP")(0, 1)
    assert (step.epochs, step.score, step.over) == (1, 0.5, False)
    assert work(home, tmp_path / "STOP")(1, 1).over
    assert work(home, tmp_path / "STOP")(1, 1).score == -float("inf")


def test_a_trial_whose_recipe_is_none_is_marked_with_the_reason(home: Path, tmp_path: Path) -> None:
    write_trial(home / "s", Trial(number=0, parameters={"method.temperature": 1}))
    assert work(home, tmp_path / "STOP")(0, 1).over
    (trial,) = read_trials(home / "s")
    assert trial.verdict == "dead"
    assert "method.temperature does not lead to a setting" in str(trial.reason)


def test_a_stop_is_heard_in_another_process(tmp_path: Path) -> None:
    stop = Stop()
    with passed_on(tmp_path / "STOP", stop):
        assert not stop.is_asked
        (tmp_path / "STOP").touch()
        deadline = time.monotonic() + 10
        while not stop.is_asked and time.monotonic() < deadline:
            time.sleep(0.05)
    assert stop.is_asked
