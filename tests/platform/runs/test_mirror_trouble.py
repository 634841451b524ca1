"""A mirror is never in the run's way, and no end of a run costs its last commit."""

import json
import logging
import threading
import time

import pytest
from mirrored_runs import assert_equal, begun, steps, wait, working, write
from object_servers import Faults

from vergence.platform import store as stores
from vergence.platform.errors import VergenceError
from vergence.platform.runs import lease, mirror
from vergence.platform.runs.remote import Remote
from vergence.platform.runs.run import Run
from vergence.platform.runs.stop import Stop

pytestmark = pytest.mark.usefixtures("hasty")


def test_commits_that_come_faster_than_they_are_copied_supersede_each_other(
    bucket: str, faults: Faults
) -> None:
    run = begun()
    with working(run, bucket, keep=1) as there:
        faults.latency_s = 0.05
        for step in range(1, 30):
            made = write(run, step, keep=1)
            time.sleep(0.02)
        faults.latency_s = 0.0
    assert_equal(there, made)
    assert steps(there) == [29]
    copied = {
        request.split("/")[-2] for request in faults.requests if f"PUT /{bucket[5:]}/first/commits" in request
    }
    assert len(copied) < 15


def test_an_end_waits_for_the_last_commit_and_says_for_what(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "QUIET_S", 0.1)
    run, said = begun(), list[str]()
    with working(run, bucket, said) as there:
        faults.latency_s = 0.2
        made = write(run, 2)
    assert_equal(there, made)
    assert said == [f"copying the commit at step 2 to {bucket}/first"]


def test_who_cannot_renew_its_lock_writes_nothing(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WRITES_S", -1.0)
    monkeypatch.setattr(mirror, "CLOSE_S", 0.1)
    run, said = begun(), list[str]()
    with working(run, bucket, said) as there:
        write(run, 2)
    assert there.folders() == {}
    assert "could not be renewed for a while" in said[-1]


def test_a_store_that_is_away_stops_nothing_and_is_told_of_twice(
    bucket: str, faults: Faults, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PART_RETRIES", 0)
    caplog.set_level(logging.INFO, mirror.__name__)
    run, said = begun(), list[str]()
    with working(run, bucket, said) as there:
        write(run, 2)
        wait(lambda: steps(there) == [2])
        faults.away = True
        began = time.monotonic()
        write(run, 4)
        assert time.monotonic() - began < 1
        wait(lambda: sum("mirror: " in line for line in caplog.messages) == 3, 30)  # times that it was tried
        assert len(said) == 1
        write(run, 6)
    assert len(said) == 2
    assert "training goes on, commits wait in" in said[0]
    assert "has not got the commit at step 6" in said[1]
    assert "the same command copies it" in said[1]
    faults.away = False
    with working(Run("first"), bucket, said) as there:
        pass
    assert steps(there)[0] == 6


def test_a_store_that_fails_at_every_fifth_request_has_the_commit(bucket: str, faults: Faults) -> None:
    run = begun()
    faults.errors = faults.resets = faults.lost = faults.busy = 0.05
    with working(run, bucket) as there:
        for step in range(1, 8):
            made = write(run, step, size=3 << 20)  # in parts
            time.sleep(0.1)
    faults.errors = faults.resets = faults.lost = faults.busy = 0.0
    assert_equal(there, made)


def test_who_was_taken_over_stops_and_writes_no_more(bucket: str, faults: Faults) -> None:
    run, stop, said, theirs = (
        begun(),
        Stop(),
        list[str](),
        {"host": "elsewhere", "pid": 7, "attempt": "theirs"},
    )
    written = list[int]()

    def puts() -> int:
        return sum(request.startswith("PUT") for request in faults.requests)

    def work() -> None:
        with working(run, bucket, said, stop=stop) as there:
            write(run, 2)
            wait(lambda: steps(there) == [2])
            there.store.put(there.lock, json.dumps(theirs).encode())
            wait(lambda: stop.is_asked)
            written.append(puts())
            write(run, 4)  # as a run does that is to stop
            time.sleep(0.3)

    with pytest.raises(VergenceError, match="process 7 on elsewhere has taken it over") as raised:
        work()
    assert raised.value.exit_code == 1
    assert written == [puts()]
    assert said == []


def test_whatever_ends_a_run_has_its_last_commit_copied(bucket: str) -> None:
    run, there = begun(), Remote(bucket, "first")

    def work() -> None:
        with working(run, bucket):
            write(run, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert steps(there) == [2]


def test_ctrl_c_gives_the_run_back_at_once(bucket: str) -> None:
    run = begun()
    with pytest.raises(KeyboardInterrupt), working(run, bucket):
        raise KeyboardInterrupt
    assert Remote(bucket, "first").holder() is None
    wait(lambda: "mirror" not in [thread.name for thread in threading.enumerate()])
