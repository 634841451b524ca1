"""What is said while ranks do not move; runs as a whole are in tests/pipelines/test_pretrain.py."""

import os
import time
from types import SimpleNamespace

import pytest

from vergence.platform.cluster.capacity import Need, ScaleConfig
from vergence.platform.cluster.driver import _delay


@pytest.fixture
def job(tmp_path):
    (tmp_path / "logs").mkdir()
    return SimpleNamespace(run=tmp_path, attempt="second")


def session(pending=None):
    return SimpleNamespace(need=Need(ScaleConfig(workers=2), 1, 1.0), pending=lambda: pending)


def begin(job, rank, attempt):
    with (job.run / "logs" / f"rank-{rank}.log").open("a") as log:
        log.write(f"INFO attempt {attempt}, rank {rank} of 2\n")


def test_a_start_says_whether_room_processes_or_the_first_step_are_missing(job):
    begin(job, 0, "first")
    assert _delay(job, session("no room"), started=False) == "no room"
    assert "0 of 2 workers have begun" in _delay(job, session(), started=False)
    begin(job, 1, "second")
    assert "1 of 2 workers have begun" in _delay(job, session(), started=False)
    begin(job, 0, "second")
    assert "2 workers build the model and read the first batch" in _delay(job, session("x"), started=False)


def test_ranks_that_take_steps_are_not_told_of_what_others_wait_for(job):
    records = job.run / "logs" / "metrics.jsonl"
    records.touch()
    assert _delay(job, session("no room"), started=True) is None
    long_ago = time.time() - 60
    os.utime(records, (long_ago, long_ago))
    assert _delay(job, session("no room"), started=True) == "no room"
    assert _delay(job, session(), started=True) is None
