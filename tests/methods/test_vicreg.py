import math
from typing import Any

import pytest
import torch
from small_methods import normal, small_method, whole
from torch import Tensor

from vergence.methods.vicreg import Embeddings, VICRegConfig

PUBLISHED: dict[str, Any] = {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0}


def loss_of(z: Tensor, form: str = "code", large: int = 2) -> Tensor:
    batch = whole(len(z))._replace(num_large=large)
    return small_method("vicreg", form=form, **PUBLISHED).criterion(Embeddings(z), (), batch).loss


def whitened(n: int, d: int) -> Tensor:
    """(n, d) with zero mean and identity covariance over n - 1."""
    z = normal(n, d)
    q, _ = torch.linalg.qr(z - z.mean(dim=0))
    return q * math.sqrt(n - 1)


def hinge_and_covariance(z: list[list[float]]) -> tuple[float, float]:
    """v(z) and c(z) of one view's n embeddings (eq. 1-4)."""
    n, d = len(z), len(z[0])
    mean = [sum(row[j] for row in z) / n for j in range(d)]

    def cov(j: int, k: int) -> float:
        return sum((row[j] - mean[j]) * (row[k] - mean[k]) for row in z) / (n - 1)

    v = sum(max(0.0, 1 - math.sqrt(cov(j, j) + 1e-4)) for j in range(d)) / d
    c = sum(cov(j, k) ** 2 for j in range(d) for k in range(d) if j != k) / d
    return v, c


def distance(a: list[list[float]], b: list[list[float]]) -> float:
    """(1 / n) sum_i |a_i - b_i|^2 (eq. 5)."""
    return sum((x - y) ** 2 for u, w in zip(a, b, strict=True) for x, y in zip(u, w, strict=True)) / len(a)


@pytest.mark.parametrize("n", [2, 4, 9])  # small n tells 1 / N from 1 / (N - 1)
@pytest.mark.parametrize("form", ["code", "paper"])
def test_loss_equals_float64_transcription(n: int, form: str) -> None:
    z = normal(n, 2, 3) * torch.tensor([0.5, 1.0, 2.0]) + 1
    one, two = z[:, 0].tolist(), z[:, 1].tolist()
    (v1, c1), (v2, c2) = hinge_and_covariance(one), hinge_and_covariance(two)
    if form == "paper":
        expected = 25 * distance(one, two) + 25 * (v1 + v2) + (c1 + c2)
    else:
        expected = 25 * distance(one, two) / 3 + 25 * (v1 / 2 + v2 / 2) + (c1 + c2)
    assert loss_of(z, form).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("large", "views"), [(2, 5), (3, 3)])
def test_loss_of_many_views_equals_float64_transcription(large: int, views: int) -> None:
    z = normal(6, views, 4)
    each = [z[:, v].tolist() for v in range(views)]
    pairs = [distance(each[t], each[s]) / 4 for s in range(views) for t in range(s) if t < large]
    v, c = zip(*map(hinge_and_covariance, each), strict=True)
    expected = 25 * sum(pairs) / len(pairs) + 25 * sum(v) / views + 2 * sum(c) / views
    assert loss_of(z, large=large).item() == pytest.approx(expected, abs=1e-10)


def test_closed_forms() -> None:
    d, n = 16, 512
    assert loss_of(torch.ones(64, 2, d, dtype=torch.float64)).item() == pytest.approx(24.75, abs=1e-6)
    rank_one = whitened(64, 1).repeat(1, d)
    assert loss_of(torch.stack([rank_one, rank_one], 1)).item() == pytest.approx(2 * (d - 1), abs=1e-6)
    z = whitened(n, d)
    assert loss_of(torch.stack([z, z], 1)).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(torch.stack([z, -z], 1)).item() == pytest.approx(99.804688, abs=1e-6)


def test_loss_is_invariant_to_order_of_samples_and_views_and_to_offset() -> None:
    z = normal(9, 2, 5)
    for same in (z[normal(9).argsort()], z.flip(1), z + torch.arange(5)):
        torch.testing.assert_close(loss_of(same), loss_of(z))


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(loss_of, (normal(4, 2, 8) / 2).requires_grad_())


def test_terms_add_up_and_published_head_and_defaults() -> None:
    method = small_method("vicreg")
    losses = method.criterion(Embeddings(normal(9, 2, 5) / 2), (), whole(9))
    torch.testing.assert_close(losses.invariance + losses.variance + losses.covariance, losses.loss.detach())
    assert losses.std.item() == pytest.approx(0.5, abs=0.15)
    layers = [type(layer).__name__ for layer in method.projector]
    assert layers == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [layer.bias is not None for layer in method.projector[::3]] == [True, True, False]
    config = VICRegConfig()
    assert (config.hidden_dim, config.embed_dim) == (8192, 8192)
    assert (config.invariance_weight, config.variance_weight, config.covariance_weight) == (25, 25, 1)
