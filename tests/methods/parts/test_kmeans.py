"""k-means: blobs are found, whatever the ranks; empty clusters; whitening; agreement of labellings."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from sklearn.metrics import normalized_mutual_info_score
from small_methods import normal
from torch import Tensor

from vergence.methods.parts.kmeans import agreement, gather_uneven, kmeans, whiten


def blobs(n: int, k: int, dim: int = 8, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    truth = torch.arange(n) % k
    centres = F.normalize(torch.eye(k, dim, dtype=torch.float64) + 0.1, dim=1)
    return F.normalize(centres[truth] + spread * normal(n, dim), dim=1), truth


def clustered(x: Tensor, k: int, seed: int = 0, **how: Any) -> Any:
    torch.manual_seed(seed)
    return kmeans(x, torch.arange(len(x)), k, **{"iterations": 10, "spherical": False, **how})


def lloyd(x: np.ndarray, start: np.ndarray, iterations: int, spherical: bool) -> np.ndarray:
    """Both algorithms in loops, for data without empty clusters."""

    def assign() -> list[int]:
        if spherical:
            return [int(np.argmax([row @ c for c in centroids])) for row in x]
        return [int(np.argmin([((row - c) ** 2).sum() for c in centroids])) for row in x]

    centroids = start.copy()
    for _ in range(iterations):
        labels = assign()
        for j in range(len(centroids)):
            own = [row for row, label in zip(x, labels, strict=True) if label == j]
            assert own
            centroids[j] = np.mean(own, axis=0)
            if spherical:
                centroids[j] /= np.linalg.norm(centroids[j])
    return np.array(assign())


@pytest.mark.parametrize("spherical", [False, True])
def test_labels_equal_plain_loops_from_the_same_start(spherical: bool) -> None:
    x = normal(60, 4)
    x = F.normalize(x, dim=1) if spherical else x
    start = clustered(x, 5, iterations=0, spherical=spherical).centroids
    assert all((x == row).all(dim=1).sum() == 1 for row in start)  # five of the rows
    found = clustered(x, 5, spherical=spherical)
    assert found.labels.tolist() == lloyd(x.numpy(), start.numpy(), 10, spherical).tolist()


@pytest.mark.parametrize("spherical", [False, True])
def test_separate_blobs_are_found(spherical: bool) -> None:
    x, truth = blobs(90, 3)
    best = max(
        (clustered(x, 3, seed, spherical=spherical) for seed in range(5)),
        key=lambda c: agreement(c.labels, truth),
    )
    assert agreement(best.labels, truth).item() == pytest.approx(1)
    if spherical:
        torch.testing.assert_close(best.centroids.norm(dim=1), torch.ones(3).double())


def test_the_same_seed_gives_the_same_and_another_seed_another_start() -> None:
    x = normal(50, 6)
    assert torch.equal(clustered(x, 7).labels, clustered(x, 7).labels)
    starts = [clustered(x, 7, seed, iterations=0).centroids for seed in (0, 1)]
    assert not torch.equal(*starts)


def test_empty_clusters_split_large_ones_or_keep_their_place() -> None:
    x = torch.tensor([[0.0, 1.0]] * 20 + [[1.0, 0.0]] * 20 + [[-1.0, 0.0]]).double()
    plain = clustered(x, 6)
    assert plain.centroids.isfinite().all()
    assert all(len(plain.labels[rows].unique()) >= 1 for rows in (slice(20), slice(20, 40)))
    assert agreement(plain.labels, torch.tensor([0] * 20 + [1] * 20 + [2])) > 0.5
    spherical = clustered(x, 6, spherical=True)
    torch.testing.assert_close(spherical.centroids.norm(dim=1), torch.ones(6).double())
    same = torch.ones(10, 3).double()
    assert clustered(same, 10).centroids.isfinite().all()  # nothing can be told apart


def test_a_split_fills_empty_clusters_where_rows_differ() -> None:
    """Twice the same start: one of the two is empty until a cluster is split."""
    x = torch.cat([torch.zeros(10, 2), torch.zeros(10, 2) + 5 + normal(10, 2) * 0.5]).double()
    for seed in range(20):
        start = clustered(x, 3, seed, iterations=0).centroids
        if (start == 0).all(dim=1).sum() == 2:
            assert len(clustered(x, 3, seed, iterations=20).labels.unique()) == 3
            return
    raise AssertionError("no such start among the seeds")


def test_more_clusters_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="9 clusters of 8 samples"):
        clustered(normal(8, 2), 9)


def _on_ranks(rank: int, world_size: int, x: Tensor, cuts: list[int], spherical: bool) -> Any:
    order = torch.arange(len(x)).flip(0)  # ids in another order than the ranks'
    own = order.split(cuts)[rank]
    torch.manual_seed(0)
    found = kmeans(x[own], own, 6, iterations=10, spherical=spherical)
    return own.numpy(), found.labels.numpy(), found.centroids.numpy(), whiten(x[own], 3).numpy()


@pytest.mark.parametrize("cuts", [[20, 20], [25, 15, 0]])
def test_what_is_found_does_not_depend_on_the_ranks(cuts: list[int]) -> None:
    x = F.normalize(normal(40, 5) * torch.linspace(1, 3, 40).double()[:, None] + 0.3, dim=1)
    for spherical in (False, True):
        expected = clustered(x, 6, spherical=spherical)
        white = whiten(x, 3)
        for own, labels, centroids, whitened in run_ranks(_on_ranks, len(cuts), x, cuts, spherical):
            np.testing.assert_allclose(centroids, expected.centroids.numpy(), atol=1e-9)
            assert labels.tolist() == expected.labels[own].tolist()
            np.testing.assert_allclose(np.abs(whitened), white[own].abs().numpy(), atol=1e-7)


def test_whitened_rows_have_no_correlation_and_unit_variance_in_the_largest_directions() -> None:
    x = normal(200, 6) @ normal(6, 6, seed=1) + 3
    white = whiten(x, 4)
    torch.testing.assert_close(white.T @ white / 200, torch.eye(4).double(), atol=1e-9, rtol=0)
    kept = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[0][:, :4] * 200**0.5
    np.testing.assert_allclose(np.abs(white.numpy()), np.abs(kept), atol=1e-8)
    flat = torch.cat([x[:, :2], torch.ones(200, 3)], dim=1)  # three directions without variance
    assert not whiten(flat, 4)[:, 2:].any()
    assert whiten(flat.float(), 9).isfinite().all()


def test_agreement_equals_scikit_learn_s() -> None:
    a, b = (normal(100, seed=seed).mul(2).round().long() + 5 for seed in (0, 1))
    b[:50] = a[:50]
    expected = normalized_mutual_info_score(a.numpy(), b.numpy())
    assert agreement(a, b).item() == pytest.approx(expected, abs=1e-9)
    assert agreement(a, 20 - a).item() == pytest.approx(1)
    assert agreement(a, a * 0).item() == pytest.approx(0, abs=1e-9)
    assert agreement(a * 0, a * 0).item() == 1


def _gathered(rank: int, world_size: int) -> Any:
    return gather_uneven(torch.arange(rank * 2) + 10 * rank).tolist()


def test_uneven_parts_are_gathered_in_rank_order() -> None:
    assert run_ranks(_gathered, 3) == [[10, 11, 20, 21, 22, 23]] * 3
