"""The next item is made while the one before is worked on."""

import threading
from collections.abc import Iterator

import pytest

from vergence.platform.train.ahead import ahead


def test_one_item_is_made_ahead_and_not_two() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    coming = ahead(items())
    assert next(coming) == 0
    assert made[1].wait(10)
    assert not made[2].is_set()
    assert list(coming) == [1, 2, 3]


def test_what_goes_wrong_is_raised_where_the_item_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("shard 3")

    coming = ahead(items())
    assert next(coming) == 0
    with pytest.raises(ValueError, match="shard 3"):
        next(coming)


def test_who_stops_early_waits_for_nothing() -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        go_on.wait(10)
        yield 1

    coming = ahead(items())
    assert next(coming) == 0
    coming.close()  # type: ignore[attr-defined]
    assert not go_on.is_set()
    go_on.set()
