"""Logistic regression: its minimum by autograd and by scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vergence.platform.evaluate import linear
from vergence.platform.evaluate.linear import Regression, predict

DIGITS = load_digits()
X = F.normalize(torch.from_numpy(DIGITS.data[:400] - 8.0), dim=1)
Y = torch.from_numpy(DIGITS.target[:400]).long()
D, K = 64, 10


@pytest.mark.parametrize("c", [0.1, 10.0, 100.0])
def test_fit_finds_the_minimum_of_the_stated_objective(c: float) -> None:
    found = Regression(X, Y, K).fit(c, tolerance=1e-8)
    w = found.clone().requires_grad_()
    sums = F.cross_entropy(X @ w[:-1] + w[-1], Y, reduction="sum") + (w[:-1] ** 2).sum() / (2 * c)
    (gradient,) = torch.autograd.grad(sums, w)
    of_one_term = float(found[:-1].abs().max()) / c  # the gradient is the difference of two such
    assert float(gradient.abs().max()) <= 1e-3 * of_one_term
    assert float(found[-1].sum()) == pytest.approx(0, abs=1e-6)  # what all classes share is free: none


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_the_minimum_is_scikit_learns(c: float) -> None:
    found = Regression(X, Y, K).fit(c, tolerance=1e-7)
    model = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(X.numpy(), Y.numpy())
    np.testing.assert_allclose(found[:-1].T, model.coef_, atol=1e-3 * float(found.abs().max()))
    bias = model.intercept_ - model.intercept_.mean()
    np.testing.assert_allclose(found[-1], bias, atol=1e-3 * float(found.abs().max()))


def test_the_minimum_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Regression(X, Y, K).fit(1.0, tolerance=1e-8)
    monkeypatch.setattr(linear, "CHUNK_BYTES", 8 * K * 97)
    torch.testing.assert_close(Regression(X, Y, K).fit(1.0, tolerance=1e-8), found, rtol=0, atol=1e-5)
    assert torch.equal(predict(X, found), (X @ found[:-1] + found[-1]).argmax(dim=1))


def test_features_of_few_dimensions_are_no_matter() -> None:
    """Copies and constants: their covariance has no inverse."""
    x = torch.cat([X[:, 20:24], X[:, 20:24], torch.ones(len(X), 1)], dim=1)
    w = Regression(x, Y, K).fit(10.0, tolerance=1e-6)
    torch.testing.assert_close(w[:4], w[4:8], rtol=0, atol=1e-4)
    assert float(w[8].abs().max()) < 1e-4  # the bias does it for nothing
    assert float((predict(x, w) == Y).double().mean()) > 0.3


def test_of_equal_logits_the_lower_class_is_predicted() -> None:
    w = torch.zeros(D + 1, K, dtype=torch.float64)
    w[-1, [3, 7]] = 1
    assert predict(X[:2], w).tolist() == [3, 3]
