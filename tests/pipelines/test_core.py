"""The core without Ray: what it hands to the ranks and back, and that it has no console."""

from types import SimpleNamespace
from typing import Any

import pytest

from vergence.pipelines import core
from vergence.platform.errors import VergenceError
from vergence.platform.runs.outcome import Outcome
from vergence.platform.runs.records import Note
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop


class Planned:
    """What the core needs of a resolved run."""

    start_step, stream = 7, "stream"

    def job(self, run: Run, stages: dict[str, float], pause_after: int | None) -> SimpleNamespace:
        return SimpleNamespace(run=run.path, stages=stages, pause_after=pause_after)


def trained(
    monkeypatch: pytest.MonkeyPatch, outcome: Outcome, **options: Any
) -> tuple[Outcome, dict[str, Any], list[Any]]:
    """What `train` returns and observes where the ranks end with an outcome; what they were given."""
    given: dict[str, Any] = {}
    events: list[Any] = []

    def fit(job: object, stream: object, session: object, **others: Any) -> Outcome:
        given.update(others, job=job, stream=stream, session=session)
        others["observe"](Note("waiting"))
        return outcome

    monkeypatch.setattr(core, "fit", fit)
    options = {"stop": Stop(), "observe": events.append, **options}
    planned: Any = Planned()
    where: Any = "session"
    return core.train(planned, Run("r"), where, **options), given, events


@pytest.mark.parametrize("status", ["finished", "paused", "interrupted"])
def test_the_outcome_of_the_ranks_is_returned_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: Any
) -> None:
    stop = Stop()
    outcome, given, events = trained(monkeypatch, Outcome(status), stop=stop, stages={"enter": 1.0})
    assert outcome == Outcome(status)
    assert (given["stream"], given["session"], given["start_step"]) == ("stream", "session", 7)
    assert given["stop"] is stop
    assert list(given["job"].stages) == ["enter", "ray"]
    assert events == [Note("waiting")]
    assert capfd.readouterr() == ("", "")


def test_the_ranks_are_told_where_to_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(monkeypatch, Outcome("paused"), pause_after=3)[1]["job"].pause_after == 3
    assert trained(monkeypatch, Outcome("finished"))[1]["job"].pause_after is None


def test_what_no_new_start_mends_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VergenceError, match="run r: the disk is full"):
        trained(monkeypatch, Outcome("failed", "the disk is full"))
