import math
from typing import Any

import pytest
import torch
from small_methods import normal, small_method, whole
from torch import Tensor

from vergence.methods.contrastive_clustering import (
    ContrastiveClusteringConfig,
    Embeddings,
    Losses,
    column_contrast,
    unevenness,
)

B, M, D = 5, 4, 3


def losses_of(z: Tensor, c: Tensor, **settings: Any) -> Losses:
    method = small_method("contrastive_clustering", embed_dim=z.shape[2], clusters=c.shape[2], **settings)
    found: Losses = method.criterion(Embeddings(z, c), (), whole(len(z)))
    return found


def cosine(a: list[float], b: list[float]) -> float:
    lengths = [math.sqrt(sum(x * x for x in each)) for each in (a, b)]
    return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def pairs_contrast(rows: list[list[float]], T: float) -> float:
    """Mean over all rows, of which i and i + half belong together."""
    n, total = len(rows), 0.0
    for i in range(n):
        e = [math.exp(cosine(rows[i], rows[k]) / T) for k in range(n) if k != i]
        total += math.log(sum(e)) - cosine(rows[i], rows[(i + n // 2) % n]) / T
    return total / n


def test_loss_equals_float64_transcription() -> None:
    z, c, T, T_c = normal(B, 2, D) * 2, normal(B, 2, M, seed=1) * 2, 0.4, 0.7
    y = [[[math.exp(x) for x in row] for row in view.tolist()] for view in c.transpose(0, 1)]
    y = [[[x / sum(row) for x in row] for row in view] for view in y]
    columns = [[row[k] for row in view] for view in y for k in range(M)]
    uneven = 0.0
    for view in y:
        p = [sum(row[k] for row in view) / B for k in range(M)]
        uneven += math.log(M) + sum(x * math.log(x) for x in p)
    rows = [row for view in z.transpose(0, 1) for row in view.tolist()]
    expected = pairs_contrast(rows, T) + pairs_contrast(columns, T_c) + uneven
    found = losses_of(z, c, temperature=T, cluster_temperature=T_c)
    assert found.loss.item() == pytest.approx(expected, abs=1e-10)
    assert found.unevenness.item() == pytest.approx(uneven, abs=1e-10)


def test_closed_forms_of_the_cluster_terms() -> None:
    m = 5
    flat = torch.full((m, 2, m), 1 / m, dtype=torch.float64)
    assert column_contrast(flat, 1.0).item() == pytest.approx(2.197225, abs=1e-6)
    assert unevenness(flat).item() == pytest.approx(0, abs=1e-9)
    balanced = torch.eye(m, dtype=torch.float64)[:, None].repeat(1, 2, 1)
    assert column_contrast(balanced, 1.0).item() == pytest.approx(1.371951, abs=1e-6)
    assert unevenness(balanced).item() == pytest.approx(0, abs=1e-9)
    one = balanced[:1].repeat(m, 1, 1)  # all in one cluster
    assert column_contrast(one, 1.0).item() == pytest.approx(2.032170, abs=1e-6)
    assert unevenness(one).item() == pytest.approx(3.218876, abs=1e-6)


def test_gradients_by_finite_differences_and_finite_for_an_unused_cluster() -> None:
    def loss(z: Tensor, c: Tensor) -> Tensor:
        return losses_of(z, c).loss

    assert torch.autograd.gradcheck(
        loss, [normal(4, 2, 6).requires_grad_(), normal(4, 2, 8, seed=1).requires_grad_()]
    )
    y = torch.eye(M, dtype=torch.float64)[:1, None].repeat(B, 2, 1).requires_grad_()
    (column_contrast(y, 1.0) + unevenness(y)).backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


def test_loss_is_invariant_to_order_of_images_of_clusters_and_of_views() -> None:
    z, c = normal(6, 2, D), normal(6, 2, M, seed=1)
    images, clusters = normal(6).argsort(), normal(M).argsort()
    loss = losses_of(z, c).loss
    torch.testing.assert_close(losses_of(z[images], c[images][:, :, clusters]).loss, loss)
    torch.testing.assert_close(losses_of(z.flip(1), c.flip(1)).loss, loss)


def test_clusters_are_scored_by_their_columns() -> None:
    """A head that gives each image its own code differs from one that gives all the same."""
    c = normal(6, 2, M)
    same = c[:, :1].repeat(1, 2, 1)
    assert losses_of(normal(6, 2, D), same).cluster_loss < losses_of(normal(6, 2, D), c).cluster_loss


def test_published_heads_and_defaults() -> None:
    method = small_method("contrastive_clustering")
    for head in (method.instance_head, method.cluster_head):
        assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear"]
    config = ContrastiveClusteringConfig()
    assert (config.temperature, config.cluster_temperature, config.embed_dim, config.clusters) == (
        0.5,
        1.0,
        128,
        10,
    )
