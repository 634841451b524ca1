import itertools

import numpy as np
import pytest
from plain_rng import chain, permutation

from vergence.platform.data.plan import Plan
from vergence.platform.errors import UserError


def test_golden_order():
    """Pinned: a change here breaks the resume of every run that exists."""
    assert Plan(20, 0.0, 0, 4).epoch(0).tolist() == GOLDEN[0]
    assert Plan(20, 0.25, 7, 4).epoch(3).tolist() == GOLDEN[1]
    assert list(itertools.islice(Plan(20, 0.25, 7, 4).candidates(3, 5), 8)) == GOLDEN[2]


GOLDEN = [
    [15, 5, 8, 13, 0, 11, 6, 7, 3, 16, 4, 1, 19, 9, 12, 2, 17, 18, 14, 10],
    [13, 8, 9, 5, 0, 12, 17, 16, 4, 6, 14, 10, 1, 2, 18],
    [18, 1, 2, 9, 5, 0, 12, 17],
]


@pytest.mark.parametrize(("n", "holdout"), [(10, 0.5), (103, 0.02), (1000, 0.3), (50, 0.0), (7, 0.1)])
def test_holdout_and_training_ids_part_the_samples(n, holdout):
    plan = Plan(n, holdout, seed=1, global_batch=2)
    every = round(1 / holdout) if holdout else n + 1
    expected = [i for i in range(n) if i % every == every - 1]
    assert plan.holdout_ids().tolist() == expected
    training = plan.training_ids(np.arange(plan.num_training))
    assert training.tolist() == [i for i in range(n) if i not in expected]


def test_holdout_does_not_depend_on_the_seed():
    np.testing.assert_array_equal(Plan(99, 0.1, 1, 2).holdout_ids(), Plan(99, 0.1, 2, 2).holdout_ids())


def test_holdout_limit_takes_evenly_spaced_ids():
    plan = Plan(1_000_000, 0.02, 0, 256)
    ids = plan.holdout_ids(limit=300)
    assert len(ids) == len(np.unique(ids)) == 300
    assert (ids % 50 == 49).all()
    gaps = np.diff(ids)
    assert gaps.min() >= 3300
    assert gaps.max() <= 3400


def test_epoch_is_a_permutation_and_differs_between_epochs_and_seeds():
    plan = Plan(1003, 0.1, 5, 64)
    training = plan.training_ids(np.arange(plan.num_training))
    orders = [plan.epoch(0), plan.epoch(1), Plan(1003, 0.1, 6, 64).epoch(0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), training)
    for one, other in itertools.combinations(orders, 2):
        assert (one != other).mean() > 0.9


def test_a_million_samples_are_a_permutation_without_visible_structure():
    order = Plan(1_000_000, 0.0, 0, 4096).epoch(0)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(order), np.ones(1_000_000))
    for positions in (np.arange(1_000_000), np.roll(order, 1)):
        assert abs(np.corrcoef(positions, order)[0, 1]) < 0.005  # 5 standard deviations


def test_no_id_twice_in_an_epoch_for_any_number_of_workers():
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


def test_order_is_cached_and_cannot_be_changed():
    plan = Plan(200_000, 0.0, 0, 64)
    assert plan.epoch(4) is Plan(200_000, 0.0, 0, 64).epoch(4)
    with pytest.raises(ValueError, match="read-only"):
        plan.epoch(4)[0] = 1


def test_candidates_are_the_unused_tail_then_everything():
    plan = Plan(50, 0.0, 0, 16)
    tail, order = plan.epoch(2)[48:], plan.epoch(2)
    for position in range(48):
        ids = list(plan.candidates(2, position))
        assert sorted(ids[:2]) == sorted(tail)
        assert sorted(ids[2:]) == sorted(order)
        start = order.tolist().index(ids[2])
        assert ids[2:] == np.roll(order, -start).tolist()  # one after the other, wrapping
    assert len({tuple(plan.candidates(2, position))[2] for position in range(48)}) > 20


def test_order_and_probe_come_from_streams_of_their_own():
    plan, order = Plan(50, 0.0, 9, 16), permutation(50, 0x504C414E, 9, 2)
    assert plan.epoch(2).tolist() == order
    for position in range(48):
        draw = chain(0x50524F42, 9, 2, position)
        tail = np.roll(order[48:], -(draw % 2)).tolist()
        assert list(plan.candidates(2, position)) == tail + np.roll(order, -(draw % 50)).tolist()


def test_ids_and_positions_have_64_bits():
    plan = Plan(2**40, 0.0, 0, 4)
    assert plan.training_ids(np.array([2**33 + 5])).tolist() == [2**33 + 5]
    assert plan.holdout_ids().dtype == plan.training_ids(np.arange(3)).dtype == np.int64


def test_candidates_without_a_tail():
    assert sorted(Plan(32, 0.0, 0, 16).candidates(0, 3)) == list(range(32))


def test_batch_larger_than_the_data_names_the_largest():
    with pytest.raises(
        UserError, match=r"batch\.global=64 is more than the 45 training samples .* fits is 45"
    ):
        Plan(50, 0.1, 0, 64)


@pytest.mark.parametrize("holdout", [-0.1, 0.51, 1.0])
def test_holdout_out_of_range(holdout):
    with pytest.raises(UserError, match=r"data\.holdout"):
        Plan(50, holdout, 0, 4)
