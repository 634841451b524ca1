"""The driver without Ray: what it passes on, how it stops, and what it says while ranks do not move."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vergence.platform.cluster import driver
from vergence.platform.cluster.capacity import Need, ScaleConfig
from vergence.platform.cluster.driver import _delay, fit
from vergence.platform.runs.outcome import Outcome, leave_outcome
from vergence.platform.runs.records import Metrics, Note, line
from vergence.platform.runs.stop import Stop


@pytest.fixture
def job(tmp_path: Path) -> Any:
    (tmp_path / "logs").mkdir()
    return SimpleNamespace(
        run=tmp_path,
        attempt="second",
        stop_file=tmp_path / "STOP.second",
        outcome_file=tmp_path / "logs" / "outcome.second.json",
    )


def session(
    pending: str | None = None, place: str = "own", missing: Callable[[], str | None] = lambda: None
) -> Any:
    need = Need(ScaleConfig(workers=2), 1, 1.0)
    return SimpleNamespace(need=need, pending=lambda: pending, place=place, missing=missing)


def begin(job: Any, rank: int, attempt: str) -> None:
    with (job.run / "logs" / f"rank-{rank}.log").open("a") as log:
        log.write(f"INFO attempt {attempt}, rank {rank} of 2\n")


def step(job: Any, number: int) -> None:
    with (job.run / "logs" / "metrics.jsonl").open("a") as file:
        file.write(line(Metrics(number, 1.0, {"loss": 0.5})))


def fitted(
    monkeypatch: pytest.MonkeyPatch,
    job: Any,
    ranks: Callable[[], str | None],
    *,
    stop: Stop | None = None,
    where: Any = None,
    start_step: int = 0,
) -> tuple[Outcome, list[Any]]:
    """Outcome and events of a fit whose ranks are a function, run where Ray Train would be."""
    monkeypatch.setattr(driver, "_fit", lambda *_: ranks() or "")
    events: list[Any] = []
    stop = stop or Stop()
    outcome = fit(
        job, None, where or session(), name="r", start_step=start_step, stop=stop, observe=events.append
    )
    assert not job.stop_file.exists()
    assert not stop.is_heard
    return outcome, events


def test_records_are_passed_on_once_from_the_start_step_and_the_ranks_outcome_is_returned(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranks() -> None:
        for number in (3, 4, 5):
            step(job, number)
        leave_outcome(job.outcome_file, Outcome("finished"))

    step(job, 2)  # of the attempt before
    outcome, events = fitted(monkeypatch, job, ranks, start_step=3)
    assert outcome == Outcome("finished")
    assert [event.step for event in events] == [3, 4, 5]


def test_a_stop_reaches_the_ranks_as_a_file_and_the_commit_is_waited_for(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def ranks() -> None:
        step(job, 0)
        stop.ask()
        assert job.stop_file.exists()
        time.sleep(0.7)
        leave_outcome(job.outcome_file, Outcome("interrupted"))

    assert fitted(monkeypatch, job, ranks, stop=stop)[0] == Outcome("interrupted")


@pytest.mark.parametrize("place", ["own", "caller"])
def test_before_the_first_step_only_ranks_that_would_outlive_us_are_waited_for(
    job: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stop, ended = Stop(), threading.Event()

    def ranks() -> None:
        stop.ask()
        while job.stop_file.exists() and place == "own":
            time.sleep(0.01)
        time.sleep(0.7)
        leave_outcome(job.outcome_file, Outcome("interrupted"))
        ended.set()

    outcome, _ = fitted(monkeypatch, job, ranks, stop=stop, where=session(place=place))
    assert outcome == Outcome("interrupted")
    assert ended.is_set() == (place == "caller")


def test_a_stop_does_not_wait_for_a_node_that_is_lost(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, released = Stop(), threading.Event()

    def ranks() -> None:
        step(job, 0)
        time.sleep(0.7)  # the driver sees the step, then the ranks are gone
        stop.ask()
        released.wait(20)

    begin_s = time.monotonic()
    outcome, _ = fitted(monkeypatch, job, ranks, stop=stop, where=session(pending="no room", place="cluster"))
    assert outcome == Outcome("interrupted")
    assert time.monotonic() - begin_s < 20
    released.set()


@pytest.mark.parametrize("farewell_s", [5.0, 0.1])
def test_what_cannot_be_mended_waits_a_while_for_ray_to_see_it(
    job: Any, monkeypatch: pytest.MonkeyPatch, farewell_s: float
) -> None:
    monkeypatch.setattr(driver, "FAREWELL_S", farewell_s)
    release, ended = threading.Event(), threading.Event()

    def ranks() -> None:
        leave_outcome(job.outcome_file, Outcome("failed", "the disk is full"))
        release.wait(1.5)  # Ray starts the ranks anew
        ended.set()

    assert fitted(monkeypatch, job, ranks)[0] == Outcome("failed", "the disk is full")
    assert ended.is_set() == (farewell_s > 1.5)
    release.set()


def test_ranks_that_left_nothing_failed(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Outcome("failed", "training failed: x")
    assert fitted(monkeypatch, job, lambda: "training failed: x")[0] == failed


def test_what_others_hold_is_waited_for_until_a_stop(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, asked = Stop(), []

    def missing() -> str:
        asked.append(1)
        if len(asked) == 2:
            stop.ask()
        return "others hold 2 CPUs"

    outcome, _ = fitted(monkeypatch, job, pytest.fail, stop=stop, where=session(missing=missing))
    assert outcome == Outcome("interrupted")


def test_a_start_says_whether_room_processes_or_the_first_step_are_missing(job: Any) -> None:
    begin(job, 0, "first")
    assert _delay(job, session("no room"), started=False) == "no room"
    assert "0 of 2 workers have begun" in _delay(job, session(), started=False)
    begin(job, 1, "second")
    assert "1 of 2 workers have begun" in _delay(job, session(), started=False)
    begin(job, 0, "second")
    assert "2 workers build the model and read the first batch" in _delay(job, session("x"), started=False)


def test_the_reason_of_a_wait_is_a_note(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vergence.platform.cluster.waiting.FIRST_S", 0.0)

    def ranks() -> None:
        time.sleep(0.2)
        leave_outcome(job.outcome_file, Outcome("finished"))

    _, events = fitted(monkeypatch, job, ranks)
    assert isinstance(events[0], Note)
    assert "0 of 2 workers have begun" in events[0].text


def test_ranks_that_take_steps_are_not_told_of_what_others_wait_for(job: Any) -> None:
    records = job.run / "logs" / "metrics.jsonl"
    records.touch()
    assert _delay(job, session("no room"), started=True) is None
    long_ago = time.time() - 60
    os.utime(records, (long_ago, long_ago))
    assert _delay(job, session("no room"), started=True) == "no room"
    assert _delay(job, session(), started=True) is None
