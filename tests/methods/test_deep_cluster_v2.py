import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.deep_cluster_v2 import DeepClusterV2Config, Embeddings


def method_with(centroids: Tensor, labels: list[list[int]], **overrides: Any) -> Any:
    """centroids: (h, k, 5); labels of the first ids in each head."""
    h, k, _ = centroids.shape
    method = small_method("deep_cluster_v2", heads=h, clusters=k, **overrides)
    method.centroids.copy_(centroids)
    method.labels[:, : len(labels[0])] = torch.tensor(labels)
    return method


@pytest.mark.parametrize("small", [0, 3])
def test_loss_equals_float64_transcription(small: int) -> None:
    """Mean over heads of the mean over views and over the images that have a cluster."""
    z, centroids = normal(4, 2 + small, 5) * 3, F.normalize(normal(2, 6, 5, seed=1), dim=2)
    labels, T = [[0, 3, -100, 5], [2, -100, -100, 1]], 0.3
    total = 0.0
    for head in (0, 1):
        terms = []
        for i in range(4):
            for v in range(2 + small):
                if labels[head][i] >= 0:
                    row = z[i, v].tolist()
                    length = math.sqrt(sum(x * x for x in row))
                    s = [
                        sum(x * y for x, y in zip(row, c.tolist(), strict=True)) / length / T
                        for c in centroids[head]
                    ]
                    terms.append(math.log(sum(map(math.exp, s))) - s[labels[head][i]])
        total += sum(terms) / len(terms) / 2
    method = method_with(centroids, labels, temperature=T)
    assert method.criterion(Embeddings(z), (), whole(4)).loss.item() == pytest.approx(total, abs=1e-10)


def test_closed_forms() -> None:
    """Flat logits: ln K. On one's own centroid of an orthonormal set: ln(1 + (K - 1) e^-10)."""
    flat = method_with(torch.zeros(1, 6, 5), [[0, 1, 2, 3]])
    assert flat.criterion(Embeddings(normal(4, 2, 5)), (), whole(4)).loss.item() == pytest.approx(math.log(6))
    own = method_with(torch.eye(5)[None], [[0, 1, 2, 3]])
    z = torch.eye(5, dtype=torch.float64)[:4, None].expand(4, 3, 5)
    expected = math.log(1 + 4 * math.exp(-10))
    assert own.criterion(Embeddings(z), (), whole(4)).loss.item() == pytest.approx(expected, abs=1e-10)


def test_a_batch_without_clusters_has_no_loss_and_a_gradient_of_zero() -> None:
    method = method_with(torch.eye(5)[None], [[-100] * 4])
    z = normal(4, 2, 5).requires_grad_()
    losses = method.criterion(Embeddings(z), (), whole(4))
    losses.loss.backward()
    assert (losses.loss.item(), losses.labelled.item()) == (0, 0)
    assert z.grad is not None
    assert not z.grad.any()


def test_gradient_by_finite_differences() -> None:
    method = method_with(F.normalize(normal(2, 6, 5), dim=2), [[0, 1, -100], [2, 2, 3]], temperature=0.5)
    assert torch.autograd.gradcheck(
        lambda z: method.criterion(Embeddings(z), (), whole(3)).loss, normal(3, 2, 5, seed=2).requires_grad_()
    )
    assert not method.centroids.requires_grad


def test_before_the_first_epoch_every_training_sample_is_embedded_and_clustered() -> None:
    method, held_out = small_method("deep_cluster_v2", unseen=True), [3, 50]
    assert (method.labels == -100).all()
    ids = torch.tensor([i for i in range(100) if i not in held_out])
    h = normal(98, 6)
    torch.manual_seed(1)
    method.before_epoch(0, lambda: iter(zip(ids.split(40), h.split(40), strict=True)))
    assert method.projector.training
    method.eval()
    z = F.normalize(method.projector(h), dim=1)
    assert torch.equal(method.bank[0][ids], z)
    assert torch.equal(method.bank[0], method.bank[1])
    assert not method.bank[:, held_out].any()
    assert (method.labels[:, held_out] == -100).all()
    for head in range(3):  # each label is that of the nearest centroid
        assert torch.equal(method.labels[head, ids], (z @ method.centroids[head].T).argmax(1))
    torch.testing.assert_close(method.centroids.norm(dim=2), torch.ones(3, 4).double())
    assert not torch.equal(method.centroids[0], method.centroids[2])  # the same bank, other starts


def test_later_epochs_cluster_what_the_steps_have_left_and_sweep_no_more() -> None:
    method, batch = small_method("deep_cluster_v2"), two_views(6, small=2)
    out = method(batch)
    before = method.bank.clone()
    method.after_step(out, (), batch)
    z = F.normalize(out.z_bvd, dim=2)
    assert torch.equal(method.bank[:, :6], z[:, :2].transpose(0, 1))
    assert torch.equal(method.bank[:, 6:], before[:, 6:])

    def no_sweep() -> Any:
        raise AssertionError("a sweep costs a pass over the set")

    method.before_epoch(1, no_sweep)
    for head, view in ((0, 0), (1, 1), (2, 0)):
        assert torch.equal(method.labels[head], (method.bank[view] @ method.centroids[head].T).argmax(1))


def test_of_a_sample_that_is_twice_in_a_batch_the_last_embedding_stays() -> None:
    method, batch = small_method("deep_cluster_v2"), two_views(4)
    batch = batch._replace(ids=torch.tensor([7, 2, 7, 5]))
    out = method(batch)
    method.after_step(out, (), batch)
    z = F.normalize(out.z_bvd, dim=2)
    assert torch.equal(method.bank[:, [7, 2, 5]], z[[2, 1, 3]].transpose(0, 1))


def test_more_clusters_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.clusters=101"):
        small_method("deep_cluster_v2", clusters=101)


def test_published_head_and_defaults() -> None:
    layers = [type(layer).__name__ for layer in small_method("deep_cluster_v2").projector]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    config = DeepClusterV2Config()
    assert (config.clusters, config.heads, config.iterations, config.temperature) == (3000, 3, 10, 0.1)
