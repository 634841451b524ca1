"""Balanced codes: the equations in plain loops, their limits, and one rank against several."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_sinkhorn import published
from ranks import run_ranks
from small_methods import normal
from torch import Tensor

from vergence.methods.parts.sinkhorn import sinkhorn


def cosines(n: int, k: int, dim: int = 32) -> Tensor:
    return F.normalize(normal(n, dim), dim=1) @ F.normalize(normal(k, dim, seed=1), dim=1).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_equal_the_published_loops(iterations: int) -> None:
    scores = cosines(7, 4)
    expected = torch.tensor(published(scores.tolist(), 0.05, iterations), dtype=torch.float64)
    torch.testing.assert_close(
        sinkhorn(scores, epsilon=0.05, iterations=iterations), expected, rtol=1e-9, atol=1e-12
    )


def test_rows_sum_to_one_and_columns_become_equal() -> None:
    scores = cosines(64, 10)
    few, many = (sinkhorn(scores, epsilon=0.05, iterations=n) for n in (3, 50))
    torch.testing.assert_close(few.sum(1), torch.ones(64, dtype=torch.float64))
    error = (few.sum(0) / 6.4 - 1).abs().max().item()
    assert 0.01 < error < 0.6
    assert (many.sum(0) / 6.4 - 1).abs().max() < 1e-5


def test_equal_rows_give_equal_shares_and_hard_codes_are_one_hot() -> None:
    same = cosines(1, 5).expand(8, 5)
    torch.testing.assert_close(sinkhorn(same, epsilon=0.05, iterations=3), torch.full((8, 5), 0.2).double())
    soft, hard = (sinkhorn(cosines(8, 5), epsilon=0.05, iterations=3, hard=h) for h in (False, True))
    assert torch.equal(hard, F.one_hot(soft.argmax(1), 5).double())


def test_half_precision_scores_neither_overflow_nor_stay_half() -> None:
    codes = sinkhorn(cosines(8, 5).half(), epsilon=0.02, iterations=3)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()
    shifted = sinkhorn(cosines(8, 5) + 100, epsilon=0.05, iterations=3)  # e^2000 overflows
    torch.testing.assert_close(shifted, sinkhorn(cosines(8, 5), epsilon=0.05, iterations=3))


def _codes(rank: int, world_size: int, scores: Tensor, cuts: list[int]) -> Any:
    own = scores.split(cuts)[rank]
    return sinkhorn(own, epsilon=0.05, iterations=3).numpy()


def test_codes_are_those_of_one_rank_also_where_ranks_have_other_numbers_of_rows() -> None:
    scores = cosines(12, 5) + torch.arange(12)[:, None] / 20  # rows of several ranks differ in size
    expected = sinkhorn(scores, epsilon=0.05, iterations=3).numpy()
    for cuts in ([6, 6], [5, 7, 0]):
        found = np.concatenate(run_ranks(_codes, len(cuts), scores, cuts))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
