"""RankMe and the spread against closed forms."""

import math

import numpy as np
import pytest
import torch

from vergence.platform.evaluate.spread import effective_rank, embedding_std


def test_effective_rank_equals_its_definition_and_known_values() -> None:
    features = np.random.default_rng(0).normal(size=(64, 12)) @ np.diag(np.arange(1.0, 13.0))
    eigenvalues = np.clip(np.linalg.eigvalsh(features.T @ features), 0, None)  # another road to the spectrum
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum() + 1e-7
    assert effective_rank(features) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    gaussian = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    assert effective_rank(gaussian) == pytest.approx(127.5, abs=0.2)  # the reference's measurement
    assert effective_rank(torch.ones(100, 16)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(100, 16)) == pytest.approx(1, abs=1e-3)
    assert math.isnan(effective_rank(torch.full((4, 2), float("nan"))))


def test_std_is_zero_when_collapsed_and_one_over_root_d_when_spread() -> None:
    gaussian = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    assert embedding_std(gaussian * 9) == pytest.approx(128**-0.5, rel=0.01)
    assert embedding_std(torch.arange(1.0, 9)[:, None] * torch.ones(8, 4)) == pytest.approx(0, abs=1e-7)
