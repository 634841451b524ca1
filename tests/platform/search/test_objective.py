"""What is read of a trial's records, and that the loss is none of it."""

import math

from vergence.platform.runs.records import FirstStep, Metrics, Monitored, Record
from vergence.platform.search.objective import OBJECTIVES, REFUSED, Reading, reading


def records() -> list[Record]:
    """Two epochs of 3 steps: losses 0 ... 5, kNN .1 and .2."""
    found: list[Record] = [FirstStep(0, {})]
    for step in range(6):
        found.append(Metrics(step, 0.0, {"loss": float(step)} if step != 4 else {"lr": 0.1}))
        if step % 3 == 2:
            epoch = step // 3 + 1
            found.append(Monitored(step, 0.0, epoch, {"knn": epoch / 10, "h_effective_rank": 7.0 * epoch}))
    return found


def test_the_score_after_an_epoch_and_the_mean_loss_of_that_epoch() -> None:
    assert reading(records(), 1, "knn") == Reading(0.1, 1.0)
    assert reading(records(), 2, "knn") == Reading(0.2, 4.0)  # of steps 3 and 5: step 4 had no finite loss
    assert reading(records(), 2, OBJECTIVES["rankme"].of) == Reading(14.0, 4.0)


def test_what_is_not_there_is_none() -> None:
    assert reading(records(), 3, "knn") == Reading(None, None)
    assert reading(records(), 1, None) == Reading(None, 1.0)
    assert reading([Monitored(2, 0.0, 1, {"knn": math.nan})], 1, "knn") == Reading(None, None)


def test_of_an_epoch_that_was_evaluated_twice_the_later_record_counts() -> None:
    assert reading([*records(), Monitored(5, 1.0, 2, {"knn": 0.3})], 2, "knn").score == 0.3


def test_no_objective_is_a_loss() -> None:
    assert "loss" in REFUSED
    assert not any("loss" in name for name in OBJECTIVES)
