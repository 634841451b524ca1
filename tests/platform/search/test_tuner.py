"""Ray Tune around a search: who goes on, who dies, what an interrupted search does not do again."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import searches_for_real

from vergence.platform.cluster.session import ENVIRONMENT, OWN_ENVIRONMENT
from vergence.platform.search.config import SearchConfig, parse_search
from vergence.platform.search.space import Choice, Range
from vergence.platform.search.trials import Result, Trial, read_trial, write_trial
from vergence.platform.search.tuner import Queue, Step, _Optuna, bound, scheduler


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What three searches have left: halving and ASHA over nine trials of which two die, TPE over five."""
    home = tmp_path_factory.mktemp("searches")
    done = subprocess.run(
        [sys.executable, str(Path(searches_for_real.__file__)), str(home)],
        env={**os.environ, **ENVIRONMENT, **OWN_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "home": home}


def by_x(trials: Sequence[dict[str, Any]]) -> dict[float, tuple[str, int]]:
    return {trial["parameters"]["x"]: (trial["verdict"], len(trial["results"])) for trial in trials}


def test_halving_trains_the_best_third_on_and_marks_who_died(found: dict[str, Any]) -> None:
    trials = by_x(found["halving"])
    assert trials[0.9] == ("finished", 3)
    assert [trials[x] for x in (0.8, 0.7)] == [("stopped", 2)] * 2
    assert [trials[x] for x in (0.1, 0.2, 0.5, 0.6)] == [("stopped", 1)] * 4
    assert [trials[x] for x in (0.3, 0.4)] == [("dead", 0)] * 2
    reasons = {trial["parameters"]["x"]: trial["reason"] for trial in found["halving"]}
    assert reasons[0.3] == "its process died"
    assert "no such thing" in reasons[0.4]
    assert reasons[0.1] == "not among the best after 1 epochs"


def test_a_trial_that_goes_on_is_trained_once_to_each_rung(found: dict[str, Any]) -> None:
    number = next(t["number"] for t in found["halving"] if t["parameters"]["x"] == 0.9)
    assert (found["home"] / "halving" / f"{number:03d}" / "trained").read_text().split() == ["1", "3", "9"]


def test_asha_stops_some_early_and_ends_with_every_cpu_free(found: dict[str, Any]) -> None:
    trials = by_x(found["asha"])
    verdicts = {verdict for verdict, _ in trials.values()}
    assert verdicts == {"finished", "stopped", "dead"}
    assert trials[0.9] == ("finished", 3)
    assert trials[0.2] == ("stopped", 1)  # .1, .5 and .9 came before it
    assert found["free"] == found["total"] == 3


def test_optuna_proposes_as_many_as_are_asked_for(found: dict[str, Any]) -> None:
    assert [trial["verdict"] for trial in found["tpe"]] == ["finished"] * 5
    assert len({trial["parameters"]["x"] for trial in found["tpe"]}) == 5
    assert {trial["parameters"]["y"] for trial in found["tpe"]} <= {"a", "b"}


def result(epochs: int, score: float) -> Result:
    return Result(epochs=epochs, score=score, loss=1.0, ended_s=0.0)


def asha(trials: Sequence[Trial]) -> Any:
    raw = {"space": {"x": {"choice": [1, 2]}}, "budget": {"epochs": 9}, "scheduler": {"name": "asha"}}
    return scheduler(parse_search(raw, "s"), trials)


def test_asha_of_a_search_that_goes_on_knows_the_scores_of_those_that_are_over() -> None:
    class Newcomer:
        trial_id = "new"

    past = [
        Trial(number=n, parameters={"x": 1}, verdict="stopped", results=(result(1, 0.5 + n / 10),))
        for n in range(3)
    ]
    for trials, decision in ((past, "STOP"), ([], "CONTINUE")):
        made = asha(trials)
        made.on_trial_add(None, Newcomer())
        assert made.on_trial_result(None, Newcomer(), {"epochs": 1, "score": 0.4}) == decision


def tpe(folder: Path, trials: Sequence[Trial] = (), seed: int = 0) -> _Optuna:
    raw = {**searches_for_real.SEARCHES["tpe"], "seed": seed}
    return _Optuna(parse_search(raw, "s"), trials)


def test_optuna_learns_from_an_earlier_attempt_and_proposes_something_else(tmp_path: Path) -> None:
    first = tpe(tmp_path)
    proposed = first.ask(0)
    over = Trial(number=0, parameters=proposed, verdict="finished", results=(result(2, 0.5),))
    again = tpe(tmp_path, [over, Trial(number=1, parameters=proposed, verdict="dead")])
    study: Any = again.inner._ot_study
    assert [trial.value for trial in study.trials] == [0.5]
    assert again.ask(2) != proposed
    again.tell(over.but(number=1), {"score": 0.7})  # one that an earlier attempt has proposed
    assert sorted(trial.value for trial in study.trials if trial.value) == [0.5, 0.5]


def test_the_queue_hands_out_what_waits_then_proposals_and_nothing_after_a_stop(tmp_path: Path) -> None:
    asked = [False]
    waiting = [Trial(number=n, parameters={"x": 0.5, "y": "a"}) for n in range(2)]
    for trial in waiting:
        write_trial(tmp_path, trial)
    queue = Queue(tmp_path, waiting, tpe(tmp_path), 2, lambda: asked[0])
    assert [queue.suggest(f"t{n}") for n in range(3)] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert set(read_trial(tmp_path, 2).parameters) == {"x", "y"}
    asked[0] = True
    assert queue.suggest("t3") == "FINISHED"
    asked[0] = False
    assert [queue.suggest("t3"), queue.suggest("t4")] == [{"number": 3}, "FINISHED"]


def test_a_step_is_a_rung_and_the_last_one_is_the_end() -> None:
    def work(number: int, epochs: int) -> Step:
        return Step(epochs, number / 10, over=number == 7)

    trial = bound(work, [1, 3])({"number": 4})
    assert [trial.step()["done"], trial.step()["done"]] == [False, True]
    assert trial.reset_config({"number": 7})
    assert trial.step()["over"]


def test_a_search_of_another_kind_has_no_scheduler() -> None:
    config: SearchConfig = parse_search({"space": {"x": {"choice": [1]}}, "budget": {"epochs": 1}}, "s")
    assert type(scheduler(config, [])).__name__ == "FIFOScheduler"


def test_domains_as_optunas() -> None:
    from vergence.platform.search.tuner import _place, _value

    choice, whole = Choice((0, {"peak": 1})), Range("integer", 1, 3)
    assert _value(choice, 1) == {"peak": 1}
    assert _place(choice, {"peak": 1}) == 1
    assert _value(whole, 2) == _place(whole, 2) == 2
