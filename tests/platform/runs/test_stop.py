"""A stop reaches the run that listens, whenever it was asked for."""

import threading

import pytest

from vergence.platform.runs.stop import Stop


def test_it_is_passed_on_when_it_is_asked_from_any_thread() -> None:
    stop, heard = Stop(), []
    with stop.heard(lambda: heard.append(threading.current_thread())):
        assert stop.is_heard
        assert not heard
        thread = threading.Thread(target=stop.ask)
        thread.start()
        thread.join()
        assert heard == [thread]
    assert not stop.is_heard
    stop.ask()
    assert len(heard) == 1


def test_one_that_was_asked_before_is_passed_on_at_once() -> None:
    stop, heard = Stop(), []
    stop.ask()
    assert stop.is_asked
    with stop.heard(lambda: heard.append(1)):
        assert heard == [1]


def test_it_stops_one_run_at_a_time() -> None:
    stop = Stop()
    with stop.heard(print), pytest.raises(AssertionError, match="one run"), stop.heard(print):
        pass
