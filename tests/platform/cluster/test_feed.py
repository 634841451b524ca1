"""Stretches: chained without a seam, and no more tasks at the start of a long run than of a short one."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

from vergence.platform.cluster.feed import Feed
from vergence.platform.data.config import DataConfig
from vergence.platform.data.plan import Plan
from vergence.platform.data.stream import STRETCH_BLOCKS, Stream

DATA = DataConfig(train="")


def stream_of(num_samples: int, epochs: int, batch: int = 512, row_bytes: int = 3072) -> Stream:
    return Stream(None, Plan(num_samples, 0.0, 0, batch), epochs, (), (), 1 << 20, 0, row_bytes)


@pytest.mark.parametrize("row_bytes", [3072, 562_000, 40_000_000])
def test_a_stretch_is_a_bounded_number_of_blocks_and_whole_steps(row_bytes: int) -> None:
    stream = stream_of(1_281_167, 300, row_bytes=row_bytes)
    rows = stream.stretch_steps(512) * 512
    assert 1 <= rows // stream.block_rows(512) <= max(STRETCH_BLOCKS, 512)


class Opened:
    """A feed whose stretches are plain lists, and which notes when each is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stream: Stream, start_step: int) -> None:
        self.asked: list[range] = []
        monkeypatch.setattr(Feed, "_open", self.open)
        self.feed = Feed(stream, DATA, 0, 1, start_step)

    def open(self, steps: range) -> Iterator[Any]:
        self.asked.append(steps)
        return iter([{"position": np.array([step])} for step in steps])


@pytest.mark.parametrize("start_step", [0, 1, 499])
def test_stretches_follow_each_other_without_a_step_lost_or_twice(
    monkeypatch: pytest.MonkeyPatch, start_step: int
) -> None:
    stream = stream_of(5120, 50)
    opened = Opened(monkeypatch, stream, start_step)
    taken = [int(share["position"][0]) for share in cast(Iterator[Any], opened.feed)]
    assert taken == list(range(start_step, 500))
    assert [step for steps in opened.asked for step in steps] == taken


def test_the_next_stretch_is_opened_before_the_last_has_ended_and_no_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = stream_of(5120, 50)
    length = stream.stretch_steps(512)
    opened = Opened(monkeypatch, stream, 0)
    shares = iter(opened.feed)
    for _ in range(length // 2):
        next(shares)
    assert len(opened.asked) == 1
    for _ in range(length // 2 - 1):
        next(shares)
    assert isinstance(opened.feed._next, Future)
    opened.feed._next.result(10)
    assert len(opened.asked) == 2


def test_a_run_that_has_ended_feeds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Opened(monkeypatch, stream_of(5120, 1), 10).feed) == []
