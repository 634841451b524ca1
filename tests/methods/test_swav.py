import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_sinkhorn import published
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.swav import Embeddings, SwAVConfig


def method_of(k: int, **overrides: Any) -> Any:
    return small_method("swav", **{"prototypes": k, "queue_size": 0, **overrides})


def loss_of(scores_bvk: Tensor, **overrides: Any) -> Tensor:
    method = method_of(scores_bvk.shape[-1], **overrides)
    z = normal(*scores_bvk.shape[:2], 5)
    return method.criterion(Embeddings(z, scores_bvk), (), whole(len(scores_bvk))).loss


def transcribed(scores: list[Any], epsilon: float, T: float, earlier: list[Any]) -> float:
    """Eq. 1-5 in loops; scores[i][v][k], earlier[t]: rows of the queue of view t."""
    n, views = len(scores), len(scores[0])
    total, terms = 0.0, 0
    for t in (0, 1):
        codes = published(earlier[t] + [image[t] for image in scores], epsilon, 3)[len(earlier[t]) :]
        for s in range(views):
            if s == t:
                continue
            terms += 1
            for code, image in zip(codes, scores, strict=True):
                norm = math.log(sum(math.exp(x / T) for x in image[s]))
                total -= sum(q * (x / T - norm) for q, x in zip(code, image[s], strict=True)) / n
    return total / terms


@pytest.mark.parametrize("small", [0, 3])
def test_loss_equals_float64_transcription(small: int) -> None:
    scores = normal(4, 2 + small, 6).tanh()
    expected = transcribed(scores.tolist(), 0.07, 0.2, [[], []])
    assert loss_of(scores, epsilon=0.07, temperature=0.2).item() == pytest.approx(expected, abs=1e-10)


def test_loss_with_a_full_queue_equals_float64_transcription() -> None:
    method = method_of(6, queue_size=8, queue_from=0.0)
    batches = [two_views(4, seed=seed, small=1) for seed in range(3)]
    for k, batch in enumerate(batches):
        out = method(batch)
        loss = method.criterion(out, (), whole(4)).loss
        earlier: list[Any] = [[], []]
        if k == 2:  # two batches fill the queue
            prototypes = F.normalize(method.prototypes.weight, dim=1)
            for t in (0, 1):
                rows = torch.cat([F.normalize(method(old).z_bvd[:, t], dim=1) for old in batches[:2]])
                earlier[t] = (rows @ prototypes.T).tolist()
        expected = transcribed(out.scores_bvk.tolist(), 0.05, 0.1, earlier)
        assert loss.item() == pytest.approx(expected, abs=1e-9)
        method.after_step(out, (), batch)


def test_queue_waits_for_its_epoch() -> None:
    method, batch = method_of(6, queue_size=8, queue_from=3.0), two_views(4)
    for progress, queued in ((0.29, 0), (0.3, 4), (0.4, 8), (0.5, 8)):  # of ten epochs
        method.after_step(method(batch), (), batch._replace(progress=progress))
        assert method.num_queued == queued


def test_closed_forms() -> None:
    """Flat scores; equal rows that are not flat, whose codes are flat; each image on a prototype of its own."""
    assert loss_of(torch.zeros(4, 2, 3000, dtype=torch.float64)).item() == pytest.approx(8.006368, abs=1e-6)
    row = normal(5).tanh()
    expected = -(row / 0.1).log_softmax(0).mean().item()
    assert loss_of(row.expand(4, 3, 5)).item() == pytest.approx(expected, abs=1e-9)
    assert expected > math.log(5)
    eye = torch.eye(8, dtype=torch.float64)[:, None].expand(8, 2, 8)
    assert loss_of(eye).item() == pytest.approx(3.178933e-4, abs=1e-9)


def test_no_gradient_through_codes_and_each_view_predicts_the_others() -> None:
    scores = normal(4, 3, 6).tanh()
    codes = small_method("swav", queue_size=0)._codes(scores)
    assert not codes.requires_grad
    log_p = lambda s: (s / 0.1).log_softmax(-1)  # noqa: E731
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]

    def with_constant_codes(s: Tensor) -> Tensor:
        return torch.stack([-(codes[:, t] * log_p(s)[:, v]).sum(-1).mean() for t, v in pairs]).mean()

    x, y = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss_of(x), x)
    (expected,) = torch.autograd.grad(with_constant_codes(y), y)
    torch.testing.assert_close(found, expected)


def test_loss_is_invariant_to_order_and_to_swapped_views() -> None:
    scores, order = normal(6, 4, 5).tanh(), normal(6).argsort()
    torch.testing.assert_close(loss_of(scores[order]), loss_of(scores))
    torch.testing.assert_close(loss_of(scores[:, [1, 0, 3, 2]]), loss_of(scores))


def test_collapse_shows_in_the_use_of_prototypes() -> None:
    method = method_of(8)
    for scores, expected in (
        (torch.eye(8)[:, None].expand(8, 2, 8), 1.0),
        (torch.eye(8)[:1, None].expand(8, 2, 8), 0.0),
    ):
        losses = method.criterion(Embeddings(normal(8, 2, 5), scores.double()), (), whole(8))
        assert losses.prototype_use.item() == pytest.approx(expected, abs=0.01)


def test_published_head_and_defaults() -> None:
    method = small_method("swav")
    layers = [type(layer).__name__ for layer in method.projector]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert all(method.projector[k].bias is not None for k in (0, 3))
    config = SwAVConfig()
    assert (config.prototypes, config.temperature, config.epsilon, config.iterations) == (3000, 0.1, 0.05, 3)
    assert (config.hidden_dim, config.embed_dim) == (2048, 128)
