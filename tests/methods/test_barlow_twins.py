import math
from typing import Literal

import pytest
import torch
from small_methods import normal, small_method, whole
from torch import Tensor

from vergence.methods.barlow_twins import BarlowTwinsConfig, Embeddings

E = 1e-5


def loss_of(z: Tensor, weight: float | Literal["mean"] = 0.0051) -> Tensor:
    return (
        small_method("barlow_twins", redundancy_weight=weight)
        .criterion(Embeddings(z), (), whole(len(z)))
        .loss
    )


def whitened(n: int, d: int) -> Tensor:
    """(n, d) with zero mean and identity covariance."""
    z = normal(n, d)
    q, _ = torch.linalg.qr(z - z.mean(dim=0))
    return q * math.sqrt(n)


@pytest.mark.parametrize("n", [2, 4, 9])  # small n tells 1 / N from 1 / (N - 1)
def test_loss_equals_float64_transcription(n: int) -> None:
    z = normal(n, 2, 3) * 2 + 1
    bars = []
    for view in (0, 1):
        columns = []
        for j in range(3):
            column = [z[i, view, j].item() for i in range(n)]
            mean = sum(column) / n
            var = sum((x - mean) ** 2 for x in column) / n
            columns.append([(x - mean) / math.sqrt(var + E) for x in column])
        bars.append(columns)
    total = 0.0
    for j in range(3):
        for k in range(3):
            c = sum(a * b for a, b in zip(bars[0][j], bars[1][k], strict=True)) / n
            total += (1 - c) ** 2 if j == k else 0.0051 * c**2
    assert loss_of(z).item() == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("d", [2, 5])
def test_mean_balanced_form_is_d_times_both_means(d: int) -> None:
    z = normal(9, 2, d) * 2 + 1
    bars = (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + E).sqrt()
    c = (bars[:, 0].T @ bars[:, 1] / 9).tolist()
    on_diag = [(1 - c[j][j]) ** 2 for j in range(d)]
    off_diag = [c[j][k] ** 2 for j in range(d) for k in range(d) if j != k]
    expected = d * (sum(on_diag) / len(on_diag) + sum(off_diag) / len(off_diag))
    assert loss_of(z, "mean").item() == pytest.approx(expected, abs=1e-10)
    assert loss_of(z, 1 / (d - 1)).item() == pytest.approx(expected, abs=1e-10)


def test_closed_form_of_the_mean_balanced_form() -> None:
    d = 16
    rank_one = whitened(64, 1).repeat(1, d)
    expected = d * (E / (1 + E)) ** 2 + d / (1 + E) ** 2  # about d, as for a constant
    assert loss_of(torch.stack([rank_one, rank_one], dim=1), "mean").item() == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize(("large", "views"), [(2, 5), (3, 3)])
def test_loss_of_many_views_is_the_mean_over_pairs_with_a_full_size_one(large: int, views: int) -> None:
    z, losses = normal(7, views, 3) * 2 + 1, []
    for t in range(views):
        for s in range(t):
            if min(t, s) < large:
                losses.append(loss_of(z[:, [s, t]]).item())  # which is transcribed above
    assert len(losses) == {(2, 5): 7, (3, 3): 3}[large, views]
    method = small_method("barlow_twins", redundancy_weight=0.0051)
    loss = method.criterion(Embeddings(z), (), whole(7)._replace(num_large=large)).loss
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)


def test_closed_forms() -> None:
    d, n, weight = 16, 64, 0.0051
    assert loss_of(torch.ones(n, 2, d, dtype=torch.float64)).item() == pytest.approx(d, abs=1e-6)
    rank_one = whitened(n, 1).repeat(1, d)
    expected = d * (E / (1 + E)) ** 2 + weight * d * (d - 1) / (1 + E) ** 2
    assert expected == pytest.approx(1.223976, abs=1e-6)
    assert loss_of(torch.stack([rank_one, rank_one], dim=1)).item() == pytest.approx(expected, abs=1e-9)
    z = whitened(n, d)
    assert loss_of(torch.stack([z, z], dim=1)).item() == pytest.approx(d * (E / (1 + E)) ** 2, abs=1e-12)
    assert loss_of(torch.stack([z, -z], dim=1)).item() == pytest.approx(63.999360, abs=1e-6)


def test_independent_views_give_the_expected_mean() -> None:
    d, n, weight = 8, 64, 0.0051
    values = [loss_of(normal(n, 2, d, seed=seed)).item() for seed in range(200)]
    assert sum(values) / 200 == pytest.approx(
        d * (1 + 1 / (n - 1)) + weight * d * (d - 1) / (n - 1), rel=0.01
    )


def test_loss_is_invariant_to_order_of_samples_and_views() -> None:
    z = normal(9, 2, 5)
    for same in (z[normal(9).argsort()], z.flip(1)):
        torch.testing.assert_close(loss_of(same), loss_of(z))


def test_loss_is_invariant_to_scale_and_offset_of_each_dimension() -> None:
    z = normal(9, 2, 5)
    rescaled = z * torch.tensor([1.0, 2.0, 5.0, 30.0, 100.0]) + torch.arange(5)
    torch.testing.assert_close(loss_of(rescaled), loss_of(z), atol=1e-4, rtol=1e-4)  # E is not rescaled


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(loss_of, normal(4, 2, 8).requires_grad_())


def test_terms_add_up_and_published_head_and_defaults() -> None:
    method = small_method("barlow_twins")
    losses = method.criterion(Embeddings(normal(9, 2, 5)), (), whole(9))
    torch.testing.assert_close(losses.invariance + losses.redundancy, losses.loss)
    layers = [type(layer).__name__ for layer in method.projector]
    assert layers == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert all(layer.bias is None for layer in method.projector[::3])
    config = BarlowTwinsConfig()
    assert (config.hidden_dim, config.embed_dim, config.redundancy_weight) == (8192, 8192, 5.1e-3)
