"""Orders of an epoch; that of `full` is pinned in test_plan.py."""

import itertools

import numpy as np
import pytest
from plain_rng import chain

from vergence.platform.data.order import Order
from vergence.platform.data.plan import Plan

CHUNKS = Order(kind="chunk", chunk=3, window=2)
N, BATCH = 50_000, 256


def test_golden_order() -> None:
    """Pinned: a change here breaks the resume of every run in this order."""
    assert CHUNKS.arrange(np.arange(20), 2, seed=7, epoch=3).tolist() == GOLDEN[0]
    assert CHUNKS.arrange(np.arange(20), 2, seed=0, epoch=0).tolist() == GOLDEN[1]
    with_holdout = Plan(20, 0.25, 7, 4, Order(kind="chunk", chunk=4, window=2))
    assert (
        with_holdout.epoch(3).tolist() == GOLDEN[2]
    )  # chunks of ids, of which the held-out ones are left out


GOLDEN = [
    [1, 2, 0, 15, 5, 3, 17, 16, 4, 18, 19, 8, 7, 6, 13, 14, 11, 10, 9, 12],
    [7, 8, 19, 6, 18, 4, 3, 5, 9, 16, 17, 10, 15, 11, 12, 13, 0, 14, 1, 2],
    [1, 2, 0, 5, 18, 19, 16, 7, 6, 13, 14, 8, 10, 9, 12],
]


def test_windows_and_places_are_those_of_the_docstring() -> None:
    """Written anew in Python's integers: 7 chunks, 4 windows, so runs of 4 chunks of which each window gets one."""
    windows: dict[int, list[int]] = {window: [] for window in range(4)}
    for run in ((0, 1, 2, 3), (4, 5, 6, 7)):
        for window, chunk in enumerate(sorted(run, key=lambda c: chain(0x43484E4B, 7, 3, c))):
            windows[window] += range(3 * chunk, min(3 * chunk + 3, 20))
    expected = [sorted(samples, key=lambda i: chain(0x574E4457, 7, 3, i)) for samples in windows.values()]
    assert CHUNKS.arrange(np.arange(20), 2, 7, 3).tolist() == [*itertools.chain(*expected)]


@pytest.mark.parametrize("num", [1, 2, 3, 7, 64, 1000, 10_007])
@pytest.mark.parametrize(("chunk", "window"), [(1, 1), (3, 2), (64, 5), (64, 10_000), (20_000, 1)])
def test_every_sample_comes_once(num: int, chunk: int, window: int) -> None:
    order = Order(kind="chunk", chunk=chunk, window=window)
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        np.testing.assert_array_equal(np.sort(order.arrange(np.arange(num), 1, seed, epoch)), np.arange(num))


def test_a_chunk_is_read_once_while_few_others_are_held() -> None:
    positions = Order(kind="chunk", chunk=10, window=8).arrange(np.arange(1000), 1, 0, 0)
    begun = list[int]()
    for chunk in (positions // 10).tolist():
        if chunk not in begun:
            begun.append(chunk)
        assert chunk in begun[-8:]
    assert begun != sorted(begun)


def test_epochs_and_seeds_differ_and_have_nothing_in_common() -> None:
    order = Order(kind="chunk")
    orders = [order.arrange(np.arange(N), BATCH, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for one, other in itertools.combinations([np.argsort(each) for each in orders], 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    for each in orders:  # neighbours of the order lie anywhere in the set
        assert abs(np.corrcoef(each[:-1], each[1:])[0, 1]) < 0.02


@pytest.mark.parametrize(("num", "batch"), [(50_000, 128), (50_000, 256), (100_000, 256)])
def test_batches_of_sorted_classes_are_as_mixed_as_in_a_full_order(num: int, batch: int) -> None:
    """Mean chi-square of a batch's counts of ten classes, of shards that are sorted by class."""
    labels = np.arange(num) * 10 // num

    def chi_square(order: Order) -> float:
        found = []
        for seed in range(6):
            batches = labels[order.arrange(np.arange(num), batch, seed, 0)][: num // batch * batch].reshape(
                -1, batch
            )
            counts = np.stack([(batches == label).sum(axis=1) for label in range(10)], axis=1)
            found.append(((counts - batch / 10) ** 2 / (batch / 10)).sum(axis=1).mean())
        return float(np.mean(found))

    assert chi_square(Order(kind="chunk")) == pytest.approx(chi_square(Order()), rel=0.05)
