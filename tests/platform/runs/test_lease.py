"""A run's lock in a store: one holder, whatever the store and the other machines do."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from object_servers import Faults

from vergence.platform.errors import UserError
from vergence.platform.runs import lease as module
from vergence.platform.runs.lease import Found, Lease, read_lock
from vergence.platform.runs.run import myself
from vergence.platform.store import Away, store_of

ELSEWHERE = {"host": "elsewhere", "boot": "b", "pids": "p", "pid": 7, "started": 1, "attempt": "theirs"}


@pytest.fixture
def url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {"BEAT_S": 0.1, "STALE_AFTER_S": 0.8, "WRITES_S": 0.6, "LOOK_S": 0.05}.items():
        monkeypatch.setattr(module, name, value)
    return f"{bucket}/lock.json"


def lease(url: str, attempt: str, on_loss: Callable[[], None] = lambda: None) -> Lease:
    return Lease(store_of(url, patience_s=2), url, attempt, on_loss)


@contextmanager
def held(url: str, attempt: str, on_loss: Callable[[], None] = lambda: None) -> Iterator[Lease]:
    taken = lease(url, attempt, on_loss)
    taken.take(says=lambda text: None)
    try:
        yield taken
    finally:
        taken.release()


def wait(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def holder(url: str) -> Found:
    found = read_lock(store_of(url), url)
    assert found is not None
    return found


def test_of_two_who_start_at_once_one_has_the_run(url: str) -> None:
    leases, refused, together = [lease(url, "a"), lease(url, "b")], list[str](), threading.Barrier(2)

    def start(each: Lease) -> None:
        together.wait()
        try:
            each.take(says=lambda text: None)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(each,)) for each in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert "is working on this run; stop it, or choose another --name" in refused[0]
    assert [each.may_write for each in leases].count(True) == 1
    for each in leases:
        if each.may_write:
            each.release()


def test_who_ends_gives_it_back(url: str) -> None:
    with held(url, "a"):
        assert not holder(url).is_free
    assert holder(url).is_free
    assert holder(url).holder["released"] is True
    with held(url, "b") as second:
        assert second.may_write
        assert holder(url).holder["attempt"] == "b"


def test_a_holder_of_this_machine_that_is_dead_is_not_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE_AFTER_S", 1e9)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store_of(url).put(url, json.dumps({**myself("theirs"), "pid": dead.pid}).encode())
    with held(url, "ours"):
        assert holder(url).holder["attempt"] == "ours"


def test_a_holder_elsewhere_without_a_sign_of_life_gives_way_after_the_stated_time(url: str) -> None:
    store_of(url).put(url, json.dumps(ELSEWHERE).encode())
    said, began, ours = list[str](), time.monotonic(), lease(url, "ours")
    ours.take(said.append)
    assert time.monotonic() - began >= 0.8
    assert len(said) == 1
    assert "held by process 7 on elsewhere" in said[0]
    ours.release()


def test_a_holder_elsewhere_that_lives_is_refused_by_name(url: str) -> None:
    store, over = store_of(url), threading.Event()

    def beat() -> None:
        for i in range(1000):
            store.put(url, json.dumps({**ELSEWHERE, "beat": i}).encode())
            if over.wait(0.2):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    wait(lambda: read_lock(store, url))
    with pytest.raises(UserError, match="process 7 on elsewhere is working on this run"), held(url, "ours"):
        pass
    over.set()
    thread.join()


def test_what_this_process_could_not_give_back_it_may_take_again(url: str, faults: Faults) -> None:
    with held(url, "first") as first:
        first.store.patience_s = 0.1
        faults.away = True
    faults.away = False
    assert not holder(url).holder["released"]
    with held(url, "second") as second:
        assert second.may_write
        with pytest.raises(UserError, match="is working on this run"), held(url, "third"):
            pass


def test_a_lock_that_is_no_lock_is_taken_over_in_time(url: str) -> None:
    store_of(url).put(url, b"[1")
    with held(url, "ours"):
        assert holder(url).holder["attempt"] == "ours"


def test_who_was_taken_over_hears_of_it_and_leaves_the_lock_alone(url: str) -> None:
    lost = threading.Event()
    with held(url, "ours", lost.set) as ours:
        store_of(url).put(url, json.dumps(ELSEWHERE).encode())
        assert lost.wait(10)
        assert not ours.may_write
        assert ours.taken_by is not None
        assert str(ours.taken_by) == "process 7 on elsewhere"
    assert holder(url).holder == ELSEWHERE


def test_a_beat_whose_answer_was_lost_counts(url: str, faults: Faults) -> None:
    faults.lost = 0.5
    lost = threading.Event()
    with held(url, "ours", lost.set) as ours:
        wait(lambda: faults.requests.count(f"PUT /{url.removeprefix('s3://')}") > 30)
        assert not lost.is_set()
        assert ours.taken_by is None
        faults.lost = 0
    assert holder(url).holder["released"] is True


def test_a_store_that_is_away_for_a_while_costs_the_right_to_write_until_it_is_back(
    url: str, faults: Faults
) -> None:
    with held(url, "ours") as ours:
        ours.store.patience_s = 0.1
        faults.away = True
        wait(lambda: not ours.may_write)
        assert ours.taken_by is None
        faults.away = False
        wait(lambda: ours.may_write)


def test_a_lock_that_somebody_has_deleted_is_made_again(url: str) -> None:
    with held(url, "ours") as ours:
        store_of(url).delete(url)
        wait(lambda: read_lock(store_of(url), url))
        assert ours.taken_by is None


def test_a_store_without_conditional_put_is_refused(url: str, faults: Faults) -> None:
    faults.unconditional = True
    with pytest.raises(UserError, match="overwrites what a conditional put must leave"), held(url, "ours"):
        pass


def test_without_the_store_nobody_knows_who_owns_the_run(url: str, faults: Faults) -> None:
    faults.away = True
    with pytest.raises(Away), held(url, "ours"):
        pass
