"""The trials of a search on the disk: SEARCH/NNN is a run's folder, SEARCH/NNN/trial.json what the search knows of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from vergence.platform.files import read_mapping, write_atomic

FILE = "trial.json"

Verdict = Literal["open", "stopped", "finished", "dead"]


class Result(BaseModel, frozen=True):
    """Where a trial stood after so many epochs."""

    epochs: int
    score: float | None
    loss: float | None
    ended_s: float  # Unix time


class Trial(BaseModel, frozen=True):
    """verdict: open (it waits, trains or pauses), stopped (by the scheduler), finished, dead (with the reason)."""

    number: int
    parameters: dict[str, Any]
    verdict: Verdict = "open"
    reason: str | None = None
    results: tuple[Result, ...] = ()
    seconds: float = 0.0  # of training, over all attempts that were not killed

    @property
    def epochs(self) -> int:
        """That it has been trained for, as far as results tell."""
        return self.results[-1].epochs if self.results else 0

    @property
    def score(self) -> float | None:
        return self.results[-1].score if self.results else None

    @property
    def loss(self) -> float | None:
        return self.results[-1].loss if self.results else None

    def at(self, epochs: int) -> Result | None:
        """Its result after exactly so many epochs."""
        return next((result for result in self.results if result.epochs == epochs), None)

    def but(self, **changes: Any) -> "Trial":
        return Trial.model_validate({**self.model_dump(), **changes})


def name_of(search: str, number: int) -> str:
    """Of a trial's run."""
    return f"{search}/{number:03d}"


def write_trial(search: Path, trial: Trial) -> None:
    folder = search / f"{trial.number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, trial.model_dump_json(indent=1))


def read_trial(search: Path, number: int) -> Trial:
    """Raises FileNotFoundError: there is no such trial."""
    trial = _read(search / f"{number:03d}" / FILE)
    if trial is None:
        raise FileNotFoundError(search / f"{number:03d}" / FILE)
    return trial


def read_trials(search: Path) -> list[Trial]:
    """All trials of a search, by number."""
    found = [_read(path) for path in search.glob(f"[0-9]*/{FILE}")]
    return sorted((trial for trial in found if trial is not None), key=lambda trial: trial.number)


def _read(path: Path) -> Trial | None:
    raw = read_mapping(path)
    try:
        return None if raw is None else Trial.model_validate(raw)
    except ValidationError:
        return None


def ranked(trials: Sequence[Trial], direction: Literal["max", "min"]) -> list[Trial]:
    """Best first: who was trained longer before who was stopped earlier, then by score; without a score last."""
    sign = 1 if direction == "max" else -1

    def order(trial: Trial) -> tuple[bool, int, float, int]:
        usable = trial.score is not None and math.isfinite(trial.score) and trial.verdict != "dead"
        return (
            not usable,
            -trial.epochs,
            -sign * (trial.score if usable and trial.score else 0.0),
            trial.number,
        )

    return sorted(trials, key=order)


def winner(trials: Sequence[Trial], direction: Literal["max", "min"]) -> Trial | None:
    """The best trial; None if none has a score."""
    first = next(iter(ranked(trials, direction)), None)
    return first if first is not None and first.score is not None and first.verdict != "dead" else None


def least_loss(trials: Sequence[Trial], direction: Literal["max", "min"]) -> Trial | None:
    """What the lowest loss would have chosen of the trials that were trained as long as the winner."""
    best = winner(trials, direction)
    if best is None:
        return None
    equals = [
        trial
        for trial in trials
        if trial.verdict != "dead" and trial.epochs == best.epochs and trial.loss is not None
    ]
    return min(equals, key=lambda trial: (trial.loss, trial.number), default=None)


def promoted(trials: Sequence[Trial], epochs: int, keep: int, direction: Literal["max", "min"]) -> set[int]:
    """Numbers of the `keep` trials with the best scores after `epochs`; the dead and those without a score are out."""
    alive = [trial for trial in trials if trial.verdict != "dead"]
    scored = {trial.number: result.score for trial in alive if (result := trial.at(epochs)) is not None}
    sign = 1 if direction == "max" else -1
    good = {number: score for number, score in scored.items() if score is not None}
    return set(sorted(good, key=lambda number: (-sign * good[number], number))[:keep])
