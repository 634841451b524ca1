"""The outcome: there is room for it on a full disk, and the first one counts."""

from types import SimpleNamespace

import pytest

from vergence.platform.train.job import Outcome, leave_outcome, read_outcome, reserve_outcome


@pytest.fixture
def job(tmp_path):
    return SimpleNamespace(outcome_file=tmp_path / "outcome.json")


def test_an_outcome_is_read_back_and_the_first_one_counts(job):
    assert read_outcome(job) is None
    reserve_outcome(job)
    assert read_outcome(job) is None
    leave_outcome(job, Outcome("failed", "the disk is full"))
    leave_outcome(job, Outcome("finished"))
    assert read_outcome(job) == Outcome("failed", "the disk is full")


def test_a_long_message_is_cut_to_the_room_there_is(job):
    reserve_outcome(job)
    leave_outcome(job, Outcome("failed", "ä" * 10_000))
    assert read_outcome(job).message.startswith("ää")


def test_it_is_told_on_a_full_disk(tmp_path, small_disk):
    disk = small_disk(tmp_path / "disk")
    job = SimpleNamespace(outcome_file=disk / "outcome.json")
    reserve_outcome(job)
    with pytest.raises(OSError, match="No space"):
        (disk / "ballast").write_bytes(bytes(2 << 20))
    leave_outcome(job, Outcome("failed", "full"))
    assert read_outcome(job).message == "full"
