"""Pictures of a search: where things stand in them, and that they are drawn."""

from pathlib import Path

import pytest

from vergence.platform.search.plots import draw, fraction, position, spent
from vergence.platform.search.space import Choice, Range
from vergence.platform.search.trials import Result, Trial

LOG, WORDS = Range("loguniform", 0.01, 1.0), Choice(("x", "y", "z"))


def trials() -> list[Trial]:
    scores = [0.3, 0.5, 0.4]
    return [
        Trial(
            number=n,
            parameters={"optim.lr": 0.01 * 10**n, "method.norm": "xyz"[n]},
            verdict="finished",
            results=(
                Result(epochs=1, score=score / 2, loss=1.0, ended_s=10.0 + n),
                Result(epochs=3, score=score, loss=1.0, ended_s=20.0 + n),
            ),
        )
        for n, score in enumerate(scores)
    ]


def test_where_a_value_stands() -> None:
    assert fraction(LOG, 0.1) == pytest.approx(0.5)
    assert [fraction(WORDS, value) for value in WORDS.values] == [0, 0.5, 1]
    assert fraction(Range("uniform", 0, 4), 1) == 0.25
    assert position(WORDS, "z") == 2
    assert position(Choice((0.1, 0.5)), 0.5) == 0.5


def test_the_best_score_so_far_over_the_epochs_that_were_spent() -> None:
    epochs, scores = spent(trials(), "max")
    assert epochs == [1, 2, 3, 5, 7, 9]
    assert scores == [0.15, 0.25, 0.25, 0.3, 0.5, 0.5]
    assert spent(trials(), "min")[1] == [0.15] * 6


def test_three_pictures_are_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "plots", trials(), {"optim.lr": LOG, "method.norm": WORDS}, "knn", "max")
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "scores.png",
        "parallel.png",
        "budget.png",
    }
    assert all(path.stat().st_size > 5_000 for path in (tmp_path / "plots").iterdir())


def test_nothing_is_drawn_without_a_score(tmp_path: Path) -> None:
    draw(tmp_path / "plots", [Trial(number=0, parameters={"a": 1})], {"a": LOG}, "knn", "max")
    assert not (tmp_path / "plots").exists()
