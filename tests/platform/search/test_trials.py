"""Trials on the disk, their ranking, and who goes on to the next rung."""

from pathlib import Path
from typing import Any

import pytest

from vergence.platform.search.trials import (
    Result,
    Trial,
    least_loss,
    name_of,
    promoted,
    ranked,
    read_trial,
    read_trials,
    winner,
    write_trial,
)


def trial(number: int, *results: tuple[int, float | None, float | None], **others: Any) -> Trial:
    """results: (epochs, score, loss)."""
    made = tuple(Result(epochs=e, score=s, loss=loss, ended_s=float(number)) for e, s, loss in results)
    return Trial(number=number, parameters={"x": number}, results=made, **others)


def test_a_trial_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = trial(3, (1, 0.5, 2.0), (3, None, None), verdict="dead", reason="why", seconds=1.5)
    write_trial(tmp_path, written)
    write_trial(tmp_path, trial(1))
    assert read_trial(tmp_path, 3) == written
    assert [each.number for each in read_trials(tmp_path)] == [1, 3]
    assert name_of("s", 3) == "s/003"


def test_half_a_file_is_no_trial(tmp_path: Path) -> None:
    write_trial(tmp_path, trial(0))
    (tmp_path / "000" / "trial.json").write_text('{"number": 0, "par')
    assert read_trials(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        read_trial(tmp_path, 0)


TRIALS = [
    trial(0, (1, 0.9, 1.0), verdict="stopped"),  # best after one epoch, but trained no longer
    trial(1, (1, 0.2, 5.0), (3, 0.5, 3.0), verdict="finished"),
    trial(2, (1, 0.3, 4.0), (3, 0.6, 4.0), verdict="finished"),
    trial(3, (1, 0.4, 4.0), (3, None, 0.1), verdict="finished"),
    trial(4, (1, 0.1, 9.0), (3, 0.99, 0.0), verdict="dead"),
    trial(5),
]


def test_ranking_puts_who_was_trained_longer_first_and_the_dead_last() -> None:
    assert [each.number for each in ranked(TRIALS, "max")] == [2, 1, 0, 3, 4, 5]
    assert [each.number for each in ranked(TRIALS, "min")] == [1, 2, 0, 3, 4, 5]


def test_the_winner_and_what_the_least_loss_would_have_chosen_of_its_equals() -> None:
    best, least = winner(TRIALS, "max"), least_loss(TRIALS, "max")
    assert best is not None
    assert best.number == 2
    assert least is not None
    assert least.number == 3  # the dead one's loss, and those of one epoch, are lower or not comparable
    assert winner([TRIALS[4], TRIALS[5]], "max") is None
    assert least_loss([TRIALS[5]], "max") is None


def test_the_best_of_a_rung_go_on_and_ties_go_to_the_lower_number() -> None:
    rung = [trial(number, (1, score, None)) for number, score in enumerate([0.1, 0.5, 0.5, None, 0.5])]
    assert promoted(rung, 1, 2, "max") == {1, 2}
    assert promoted(rung, 1, 1, "min") == {0}
    assert promoted(rung, 3, 2, "max") == set()
    dead = [rung[0], rung[1].but(verdict="dead"), rung[2]]
    assert promoted(dead, 1, 2, "max") == {0, 2}
