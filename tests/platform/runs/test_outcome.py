"""The outcome: there is room for it on a full disk, and the first one counts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vergence.platform.runs.outcome import (
    Outcome,
    last_outcome,
    leave_outcome,
    outcome_file,
    read_outcome,
    reserve_outcome,
)


def test_an_outcome_is_read_back_and_the_first_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert read_outcome(path) is None
    reserve_outcome(path)
    assert read_outcome(path) is None
    leave_outcome(path, Outcome("failed", "the disk is full"))
    leave_outcome(path, Outcome("finished"))
    assert read_outcome(path) == Outcome("failed", "the disk is full")


def test_a_long_message_is_cut_to_the_room_there_is(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    reserve_outcome(path)
    leave_outcome(path, Outcome("failed", "ä" * 10_000))
    assert read_outcome(path).message.startswith("ää")


def test_it_is_told_on_a_full_disk(tmp_path: Path, small_disk: Callable[[Path], Path]) -> None:
    disk = small_disk(tmp_path / "disk")
    reserve_outcome(disk / "outcome.json")
    with pytest.raises(OSError, match="No space"):
        (disk / "ballast").write_bytes(bytes(2 << 20))
    leave_outcome(disk / "outcome.json", Outcome("failed", "full"))
    assert read_outcome(disk / "outcome.json").message == "full"


def test_the_last_outcome_is_that_of_the_newest_attempt_and_none_if_it_was_killed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert last_outcome(tmp_path) is None
    seen = []
    ends: list[tuple[int, str, Any]] = [(1, "b", "failed"), (2, "a", "interrupted"), (3, "c", None)]
    for moment, attempt, status in ends:
        path = outcome_file(tmp_path, attempt)
        reserve_outcome(path)
        if status is not None:
            leave_outcome(path, Outcome(status))
        os.utime(path, (moment, moment))
        seen.append(last_outcome(tmp_path))
    assert seen == [Outcome("failed"), Outcome("interrupted"), None]
