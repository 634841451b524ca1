import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.adco import AdCo, AdCoConfig, Embeddings, Targets


def method_of(negatives: Tensor, **settings: Any) -> AdCo:
    """With these negatives, which have all been keys."""
    method: AdCo = small_method(
        "adco", num_negatives=len(negatives), embed_dim=negatives.shape[1], **settings
    )
    method.negatives.copy_(negatives)
    method.filled.fill_(len(negatives))
    return method


def loss_of(q: Tensor, k: Tensor, negatives: Tensor, **settings: Any) -> Tensor:
    return method_of(negatives, **settings).criterion(Embeddings(q), Targets(k), whole(len(q))).loss


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def transcription(q: Tensor, k: Tensor, negatives: Tensor, T: float) -> float:
    candidates = [*k.tolist(), *(unit(row) for row in negatives.tolist())]
    total = 0.0
    for i, row in enumerate(q.tolist()):
        s = [sum(a * b for a, b in zip(unit(row), other, strict=True)) / T for other in candidates]
        total += (math.log(sum(map(math.exp, s))) - s[i]) / len(q)
    return total


def test_loss_equals_float64_transcription_for_one_query_many_and_both_directions() -> None:
    q, k, w, T = normal(4, 3, 5) * 2, F.normalize(normal(4, 2, 5, seed=1), dim=2), normal(9, 5, seed=2), 0.3
    one = loss_of(q[:, :1], k[:, 1:], w, temperature=T).item()
    assert one == pytest.approx(transcription(q[:, 0], k[:, 1], w, T), abs=1e-10)
    many = [transcription(q[:, s], k[:, 1], w, T) for s in range(3)]
    assert loss_of(q, k[:, 1:], w, temperature=T).item() == pytest.approx(sum(many) / 3, abs=1e-10)
    both = transcription(q[:, 0], k[:, 1], w, T) + transcription(q[:, 1], k[:, 0], w, T)
    symmetric = loss_of(q[:, :2], k, w, temperature=T, symmetric=True).item()
    assert symmetric == pytest.approx(both / 2, abs=1e-10)


def test_closed_forms() -> None:
    N, K, T = 8, 64, 0.12
    same = torch.ones(N, 1, 1, dtype=torch.float64)
    assert loss_of(same, same, torch.ones(K, 1), temperature=T).item() == pytest.approx(4.276666, abs=1e-6)
    rows = torch.eye(N + K, dtype=torch.float64)
    ideal = loss_of(rows[:N, None], rows[:N, None], rows[N:], temperature=T).item()
    assert ideal == pytest.approx(0.016922, abs=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_negatives_gradient_is_that_of_autograd(symmetric: bool) -> None:
    q = F.normalize(normal(4, 2, 5), dim=2)
    k, w = F.normalize(normal(4, 2 if symmetric else 1, 5, seed=1), dim=2), normal(9, 5, seed=2) * 3
    method = method_of(w, temperature=0.07, adversary_temperature=0.07, symmetric=symmetric)
    asked = method.negatives.clone().requires_grad_()
    analytic = method._gradient(q, k)
    method.negatives = asked
    loss = method.criterion(Embeddings(q), Targets(k), whole(4)).loss
    (expected,) = torch.autograd.grad(loss, [asked])
    torch.testing.assert_close(analytic, expected, rtol=1e-9, atol=1e-12)


def test_negatives_climb_the_loss_that_the_student_descends() -> None:
    q, k, w = normal(6, 1, 5), F.normalize(normal(6, 1, 5, seed=1), dim=2), normal(9, 5, seed=2)
    method = method_of(w, temperature=0.2, adversary_temperature=0.2, adversary_lr=0.1, adversary_decay=0.0)
    before = method.criterion(Embeddings(q), Targets(k), whole(6)).loss
    gradient = method._gradient(F.normalize(q, dim=2), k)
    old = method.negatives.clone()
    method.after_step(Embeddings(q), Targets(k), whole(6))
    torch.testing.assert_close(method.negatives, old + 0.1 * gradient)
    assert method.criterion(Embeddings(q), Targets(k), whole(6)).loss > before
    second = method._gradient(F.normalize(q, dim=2), k)
    old = method.negatives.clone()
    method.after_step(Embeddings(q), Targets(k), whole(6))
    torch.testing.assert_close(method.negatives, old + 0.1 * (0.9 * gradient + second))


def test_gradient_by_finite_differences_and_none_into_keys_and_negatives() -> None:
    k, w = F.normalize(normal(4, 1, 8, seed=1), dim=2).requires_grad_(), normal(9, 8, seed=2)
    assert torch.autograd.gradcheck(lambda q: loss_of(q, k, w), normal(4, 2, 8).requires_grad_())
    loss_of(normal(4, 1, 8).requires_grad_(), k, w).backward()
    assert k.grad is None
    method = method_of(w)
    assert not method.negatives.requires_grad
    assert "negatives" not in dict(method.named_parameters())


def test_first_the_negatives_are_filled_with_keys_while_the_batch_has_no_others() -> None:
    method, keys = small_method("adco", num_negatives=12), []
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(0.5)  # away from the teacher
    for step in range(3):
        batch = two_views(5, seed=step)
        out, targets = method(batch), method.targets(batch)
        q, k = F.normalize(out.q_bvd[:, 0], dim=1), targets.k_btd[:, 0]
        scores = torch.cat([(q * k).sum(1, keepdim=True), q @ F.normalize(method.negatives, dim=1).T], 1)
        expected = -(scores / 0.12).log_softmax(dim=1)[:, 0].mean()
        torch.testing.assert_close(method.criterion(out, targets, whole(5)).loss, expected)
        method.after_step(out, targets, batch)
        keys.append(k)
        same = [
            torch.equal(t, s) for t, s in zip(method.teacher[1].parameters(), method.projector.parameters())
        ]
        assert all(same) == (step == 2)
    assert torch.equal(method.negatives, torch.cat(keys)[:12])
    assert int(method.filled) == 12
    assert not method.velocity.any()
    method.after_step(out, targets, batch)
    assert method.velocity.any()


def test_keys_come_back_from_their_shuffle() -> None:
    for symmetric in (False, True):
        method, batch = small_method("adco", symmetric=symmetric), two_views(6)
        plain = method.targets(batch).k_btd
        assert plain.shape == (6, 1 + symmetric, 5)
        shuffled = method.targets(batch._replace(shuffle=torch.tensor([3, 1, 5, 0, 2, 4]))).k_btd
        torch.testing.assert_close(shuffled, plain)


def test_published_head_and_defaults() -> None:
    layers = [type(layer).__name__ for layer in small_method("adco").projector]
    assert layers == ["Linear", "ReLU", "Linear"]
    config = AdCoConfig()
    assert (config.temperature, config.adversary_temperature, config.adversary_lr) == (0.12, 0.02, 3.0)
    assert (config.momentum, config.num_negatives, config.embed_dim) == (0.999, 65536, 128)
    assert not config.symmetric
