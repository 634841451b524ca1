import math
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from small_methods import normal, small_method, sweep_of, two_views, whole
from torch import Tensor

from vergence.methods.deep_cluster import DeepClusterConfig, Embeddings
from vergence.methods.parts.kmeans import agreement


def method_with(labels: list[int], k: int) -> Any:
    method = small_method("deep_cluster", clusters=k, unseen=True)
    method.labels[: len(labels)] = torch.tensor(labels)
    method.sizes.copy_(torch.bincount(method.labels[method.labels >= 0], minlength=k))
    return method


def loss_of(method: Any, logits: Tensor) -> Tensor:
    found: Tensor = method.criterion(
        Embeddings(normal(*logits.shape[:2], 6), logits), (), whole(len(logits))
    ).loss
    return found


@pytest.mark.parametrize("views", [1, 2])
def test_loss_equals_float64_transcription(views: int) -> None:
    """Every cluster of the batch weighs what it is of the set: images by 1 / the size of their cluster."""
    labels = [0, 0, -100, 1, 2] + [0] * 5 + [1] * 2  # of which five are in the batch; sizes 7, 3, 1
    logits = normal(5, views, 4)
    total, weights = 0.0, 0.0
    for i, size in ((0, 7), (1, 7), (3, 3), (4, 1)):
        weights += 1 / size
        for v in range(views):
            row = logits[i, v].tolist()
            total += (math.log(sum(map(math.exp, row))) - row[labels[i]]) / size / views
    assert loss_of(method_with(labels, 4), logits).item() == pytest.approx(total / weights, abs=1e-10)


def test_flat_logits_cost_ln_k_whatever_the_clusters() -> None:
    flat = torch.zeros(5, 1, 8, dtype=torch.float64)
    for labels in ([0, 1, 2, 3, 4], [0, 0, 0, 0, 7], [-100, 3, 3, 3, 1]):
        assert loss_of(method_with(labels, 8), flat).item() == pytest.approx(math.log(8))
    assert loss_of(method_with([-100] * 5, 8), flat).item() == 0


def test_over_an_epoch_each_cluster_weighs_the_same() -> None:
    """As a sampler that draws every cluster equally often: a whole epoch as one batch is the mean over clusters."""
    labels = [0] * 6 + [1] * 3 + [2]
    logits = normal(10, 1, 3)
    entropies = -logits[:, 0].log_softmax(1)[range(10), labels]
    expected = torch.stack([entropies[:6].mean(), entropies[6:9].mean(), entropies[9]]).mean()
    torch.testing.assert_close(loss_of(method_with(labels, 3), logits), expected)


def test_gradient_by_finite_differences() -> None:
    method = method_with([0, 1, -100, 1], 3)
    assert torch.autograd.gradcheck(lambda x: loss_of(method, x), normal(4, 2, 3).requires_grad_())


def test_before_an_epoch_clusters_are_found_and_the_classifier_begins_anew() -> None:
    method = small_method("deep_cluster", unseen=True)
    old = method.classifier.weight.detach().clone()
    torch.manual_seed(3)
    made_anew = method.before_epoch(0, sweep_of(method))
    assert [id(p) for p in made_anew] == [id(p) for p in method.classifier.parameters()]
    assert (method.classifier.weight != old).all()
    assert not method.classifier.bias.any()
    torch.manual_seed(3)
    again = small_method("deep_cluster", seed=5, unseen=True)
    torch.manual_seed(3)
    again.before_epoch(0, sweep_of(method))
    assert torch.equal(again.labels, method.labels)
    assert torch.equal(again.classifier.weight, method.classifier.weight)
    assert (method.labels >= 0).all()
    assert method.sizes.sum() == 100
    assert torch.equal(method.sizes, torch.bincount(method.labels, minlength=4))
    assert method.agreed == 0
    first = method.labels.clone()
    method.before_epoch(1, sweep_of(method, seed=1))
    assert method.agreed.item() == pytest.approx(agreement(method.labels, first).item())
    out = method(two_views(4))
    losses = method.criterion(out, (), whole(4))
    assert losses.agreement == method.agreed
    assert losses.clusters_used == 1


def test_initial_classifier_is_small_as_published() -> None:
    method = small_method("deep_cluster", clusters=90)
    assert method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)


def _before_epoch(rank: int, world_size: int) -> list[Any]:
    method = small_method("deep_cluster", unseen=True)
    torch.manual_seed(3)
    method.before_epoch(0, sweep_of(method))
    return [method.labels.numpy(), method.sizes.numpy(), method.classifier.weight.detach().numpy()]


def test_clusters_do_not_depend_on_the_ranks() -> None:
    (expected,) = run_ranks(_before_epoch, 1)
    for world_size in (2, 3):
        for found in run_ranks(_before_epoch, world_size):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_defaults_are_the_published_ones() -> None:
    config = DeepClusterConfig()
    assert (config.clusters, config.whitened_dim, config.iterations) == (10000, 256, 20)
