"""Logistic regression: its minimum by autograd, by scikit-learn, and from any start."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vergence.platform.evaluate import linear
from vergence.platform.evaluate.linear import fit, predict

DIGITS = load_digits()
X = F.normalize(torch.from_numpy(DIGITS.data[:400] - 8.0), dim=1)
Y = torch.from_numpy(DIGITS.target[:400]).long()
D, K = 64, 10


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_fit_finds_the_minimum_of_the_stated_objective(c):
    found = fit(X, Y, K, c, tolerance=1e-7)
    model = LogisticRegression(C=c, tol=1e-7, max_iter=2000).fit(X.numpy(), Y.numpy())
    np.testing.assert_allclose(found[:-1].T, model.coef_, atol=2e-3 * float(found.abs().max()))
    w = found.clone().requires_grad_()
    sums = F.cross_entropy(X @ w[:-1] + w[-1], Y, reduction="sum") + (w[:-1] ** 2).sum() / (2 * c)
    (gradient,) = torch.autograd.grad(sums, w)
    assert float(gradient.abs().max()) / len(X) <= 1e-7


def test_the_minimum_does_not_depend_on_the_start_nor_on_the_chunk(monkeypatch):
    found = fit(X, Y, K, 1.0, tolerance=1e-8)
    other = fit(X, Y, K, 1.0, tolerance=1e-8, start=torch.arange((D + 1.0) * K).view(D + 1, K) / 100)
    torch.testing.assert_close(other[:-1], found[:-1], rtol=0, atol=1e-3)
    bias = other[-1] - other[-1].mean()  # what all classes share is free
    torch.testing.assert_close(bias, found[-1], rtol=0, atol=1e-3)
    monkeypatch.setattr(linear, "CHUNK_BYTES", 8 * K * 97)
    torch.testing.assert_close(fit(X, Y, K, 1.0, tolerance=1e-8), found, rtol=0, atol=1e-3)
    assert torch.equal(predict(X, found), (X @ found[:-1] + found[-1]).argmax(dim=1))


def test_of_equal_logits_the_lower_class_is_predicted():
    w = torch.zeros(D + 1, K, dtype=torch.float64)
    w[-1, [3, 7]] = 1
    assert predict(X[:2], w).tolist() == [3, 3]
