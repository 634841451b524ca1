import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
from plain_rng import chain, permutation

from vergence.platform.data.order import Order
from vergence.platform.data.plan import Plan
from vergence.platform.errors import UserError


def test_golden_order() -> None:
    """Pinned: a change here breaks the resume of every run that exists."""
    assert Plan(20, 0.0, 0, 4).epoch(0).tolist() == GOLDEN[0]
    assert Plan(20, 0.25, 7, 4).epoch(3).tolist() == GOLDEN[1]
    assert list(itertools.islice(Plan(20, 0.25, 7, 4).candidates(3, 5), 8)) == GOLDEN[2]


GOLDEN = [
    [15, 5, 8, 13, 0, 11, 6, 7, 3, 16, 4, 1, 19, 9, 12, 2, 17, 18, 14, 10],
    [13, 8, 9, 6, 0, 12, 18, 16, 5, 7, 14, 10, 1, 2, 19],
    [19, 1, 2, 9, 6, 0, 12, 18],
]


def test_golden_holdout() -> None:
    """Pinned: a change here trains runs that exist on what they held out."""
    assert Plan(40, 0.5, 0, 4).holdout_ids().tolist() == HELD[0]
    assert Plan(40, 0.4, 0, 4).holdout_ids().tolist() == HELD[1]
    assert Plan(40, 0.1, 0, 4).holdout_ids().tolist() == HELD[2]
    large = Plan(10**9, 0.02, 0, 256)
    assert large.holdout_ids(4).tolist() == HELD[3]
    assert large.training_ids([0, 10**8, 979_999_999]).tolist() == HELD[4]


HELD = [
    [1, 2, 5, 7, 9, 11, 12, 15, 17, 18, 21, 22, 25, 26, 29, 30, 33, 35, 37, 38],
    [2, 3, 6, 9, 11, 14, 17, 19, 20, 23, 26, 28, 32, 33, 36, 38],
    [1, 10, 23, 35],
    [145327725, 326631847, 670916613, 840145391],
    [0, 102040816, 999999999],
]

SHARES = [0.5, 0.4, 0.35, 1 / 3, 0.25, 0.1, 0.03, 0.021, 0.02, 1e-4]


@pytest.mark.parametrize("holdout", SHARES)
@pytest.mark.parametrize("n", [2, 5, 7, 10, 103, 1000, 49_999])
def test_every_id_is_either_held_out_or_at_one_training_position(n: int, holdout: float) -> None:
    plan = Plan(n, holdout, seed=1, global_batch=1)
    held, training = plan.holdout_ids(n), plan.training_ids(np.arange(plan.num_training))
    assert len(held) == plan.num_holdout == exact(holdout) * n // 1
    assert (np.diff(held) > 0).all()
    assert (np.diff(training) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([held, training])), np.arange(n))
    np.testing.assert_array_equal(plan.training_positions(training), np.arange(plan.num_training))
    assert (plan.training_positions(held) == -1).all()


def exact(holdout: float) -> Fraction:
    return Fraction(1, 3) if holdout == 1 / 3 else Fraction(str(holdout))


@pytest.mark.parametrize("holdout", SHARES)
def test_one_id_is_held_out_in_each_run_of_1_over_the_share(holdout: float) -> None:
    plan = Plan(50_000, holdout, seed=1, global_batch=1)
    runs = [int(i) * exact(holdout) // 1 for i in plan.holdout_ids(50_000)]
    assert runs == list(range(plan.num_holdout))


def test_without_a_holdout_all_train() -> None:
    plan = Plan(50, 0.0, 1, 2)
    assert (plan.num_holdout, plan.holdout_ids().tolist()) == (0, [])
    assert plan.training_ids(np.arange(50)).tolist() == plan.training_positions(np.arange(50)).tolist()
    assert plan.num_training == 50


def test_holdout_does_not_depend_on_the_seed_nor_on_samples_that_were_added() -> None:
    ids = Plan(990, 0.1, 1, 2).holdout_ids()
    np.testing.assert_array_equal(ids, Plan(990, 0.1, 2, 2).holdout_ids())
    np.testing.assert_array_equal(ids, Plan(2000, 0.1, 2, 2).holdout_ids()[:99])


@pytest.mark.parametrize(("holdout", "period"), [(0.1, 10), (0.5, 2), (0.02, 10), (0.05, 7)])
def test_classes_that_alternate_are_held_out_alike(holdout: float, period: int) -> None:
    labels = np.arange(100_000) % period
    share = np.bincount(labels[Plan(100_000, holdout, 0, 1).holdout_ids(10**6)], minlength=period) * period
    np.testing.assert_allclose(share / (100_000 * holdout), 1, atol=0.25)


def test_the_limit_draws_evenly_and_meets_no_period_of_the_classes() -> None:
    plan = Plan(1_000_000, 0.02, 0, 256)
    ids = plan.holdout_ids(limit=1000)  # one in 20 of the held-out ids, which lie 50 apart
    assert len(np.unique(ids)) == 1000
    assert (plan.training_positions(ids) == -1).all()
    np.testing.assert_array_equal(ids // 1000, np.arange(1000))
    for labels in (ids % 10, ids // 50 % 10, ids // 50 % 20):  # blocks of 50 of a class, in turn
        counts = np.bincount(labels)
        assert counts.min() > 0.5 * counts.mean()


def test_ten_million_ids_are_found_in_seconds() -> None:
    plan = Plan(10**7, 0.021, 0, 256)
    begin = time.process_time()
    ids = plan.training_ids(np.arange(plan.num_training))
    positions = plan.training_positions(ids)
    assert time.process_time() - begin < 5  # about 0.5
    np.testing.assert_array_equal(positions, np.arange(len(ids)))


def test_epoch_is_a_permutation_and_differs_between_epochs_and_seeds() -> None:
    plan = Plan(1003, 0.1, 5, 64)
    training = plan.training_ids(np.arange(plan.num_training))
    orders = [plan.epoch(0), plan.epoch(1), Plan(1003, 0.1, 6, 64).epoch(0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), training)
    for one, other in itertools.combinations(orders, 2):
        assert (one != other).mean() > 0.9


def test_a_million_samples_are_a_permutation_without_visible_structure() -> None:
    order = Plan(1_000_000, 0.0, 0, 4096).epoch(0)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(order), np.ones(1_000_000))
    for positions in (np.arange(1_000_000), np.roll(order, 1)):
        assert abs(np.corrcoef(positions, order)[0, 1]) < 0.005  # 5 standard deviations


def test_no_id_twice_in_an_epoch_for_any_number_of_workers() -> None:
    plan = Plan(1000, 0.1, 3, 48)
    assert plan.batches_per_epoch == 900 // 48
    for step in range(plan.batches_per_epoch * 2):
        for world in (1, 2, 3, 4):
            shares = [plan.rank_ids(step, rank, world) for rank in range(world)]
            assert {len(share) for share in shares} == {48 // world}
            np.testing.assert_array_equal(np.concatenate(shares), plan.batch_ids(step))
    second = np.concatenate([plan.batch_ids(step) for step in range(18, 36)])
    assert len(np.unique(second)) == len(second)
    np.testing.assert_array_equal(second, plan.epoch(1)[: len(second)])


def test_order_is_cached_and_cannot_be_changed() -> None:
    plan = Plan(200_000, 0.0, 0, 64)
    assert plan.epoch(4) is Plan(200_000, 0.0, 0, 64).epoch(4)
    with pytest.raises(ValueError, match="read-only"):
        plan.epoch(4)[0] = 1


def test_candidates_are_the_unused_tail_then_everything() -> None:
    plan = Plan(50, 0.0, 0, 16)
    tail, order = plan.epoch(2)[48:], plan.epoch(2)
    for position in range(48):
        ids = list(plan.candidates(2, position))
        assert sorted(ids[:2]) == sorted(tail)
        assert sorted(ids[2:]) == sorted(order)
        start = order.tolist().index(ids[2])
        assert ids[2:] == np.roll(order, -start).tolist()  # one after the other, wrapping
    assert len({tuple(plan.candidates(2, position))[2] for position in range(48)}) > 20


def test_order_and_probe_come_from_streams_of_their_own() -> None:
    plan, order = Plan(50, 0.0, 9, 16), permutation(50, 0x504C414E, 9, 2)
    assert plan.epoch(2).tolist() == order
    for position in range(48):
        draw = chain(0x50524F42, 9, 2, position)
        tail = np.roll(order[48:], -(draw % 2)).tolist()
        assert list(plan.candidates(2, position)) == tail + np.roll(order, -(draw % 50)).tolist()


def test_ids_and_positions_have_64_bits() -> None:
    plan = Plan(2**40, 0.0, 0, 4)
    assert plan.training_ids(np.array([2**33 + 5])).tolist() == [2**33 + 5]
    assert plan.holdout_ids().dtype == plan.training_ids(np.arange(3)).dtype == np.int64


def test_candidates_without_a_tail() -> None:
    assert sorted(Plan(32, 0.0, 0, 16).candidates(0, 3)) == list(range(32))


def test_batch_larger_than_the_data_names_the_largest() -> None:
    with pytest.raises(
        UserError, match=r"batch\.global=64 is more than the 45 training samples .* fits is 45"
    ):
        Plan(50, 0.1, 0, 64)


@pytest.mark.parametrize("holdout", [-0.1, 0.51, 1.0])
def test_holdout_out_of_range(holdout: float) -> None:
    with pytest.raises(UserError, match=r"data\.holdout"):
        Plan(50, holdout, 0, 4)


@pytest.mark.parametrize("holdout", [0.0, 0.1])
def test_the_window_that_follows_is_fetched_while_one_is_read(holdout: float) -> None:
    plan = Plan(1000, holdout, 3, 10, Order(kind="chunk", chunk=8, window=10))
    windows = _windows(plan, 0)
    assert len(windows) > 5
    fetched = [
        plan.coming(0, start, min(start + 3, plan.batches_per_epoch), is_last=False)
        for start in range(0, plan.batches_per_epoch, 3)
    ]
    expected = [*windows[1:], _windows(plan, 1)[0]]
    np.testing.assert_array_equal(np.concatenate(fetched), np.concatenate([np.sort(w) for w in expected]))
    assert max(map(len, fetched)) < 3 * 3 * 10  # spread over the window that is read
    last = [plan.coming(0, start, start + 1, is_last=True) for start in range(plan.batches_per_epoch)]
    np.testing.assert_array_equal(np.concatenate(last), np.concatenate([np.sort(w) for w in windows[1:]]))


def _windows(plan: Plan, epoch: int) -> list[np.ndarray]:
    training = plan.training_ids(np.arange(plan.num_training))
    starts = plan.order.window_starts(training, plan.global_batch, plan.seed, epoch)
    return np.split(plan.epoch(epoch), starts[1:-1])
