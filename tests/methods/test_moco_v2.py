import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods.moco_v1 import Embeddings, Targets
from vergence.methods.moco_v2 import MoCoV2Config


def loss_of(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    size, dim = queue.shape
    method = small_method("mocov2", queue_size=size, embed_dim=dim, temperature=temperature)
    method.queue.keys.copy_(queue)
    queries = q if q.dim() == 3 else q[:, None]
    return method.criterion(Embeddings(queries), Targets(k), whole(len(q))).loss


def test_loss_equals_float64_transcription() -> None:
    q, k, queue, T = normal(4, 5) * 2, normal(4, 5, seed=1), normal(9, 5, seed=2), 0.3
    k, queue = k / k.norm(dim=1, keepdim=True), queue / queue.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(4):
        row = [a / math.sqrt(sum(b * b for b in q[i].tolist())) for a in q[i].tolist()]
        s = [
            sum(a * b for a, b in zip(row, key, strict=True)) / T for key in [k[i].tolist(), *queue.tolist()]
        ]
        total -= math.log(math.exp(s[0]) / sum(map(math.exp, s)))
    assert loss_of(q, k, queue, T).item() == pytest.approx(total / 4, abs=1e-10)


def test_loss_of_many_queries_is_the_mean_over_them() -> None:
    q, k, queue = normal(4, 3, 5), F.normalize(normal(4, 5, seed=1)), F.normalize(normal(9, 5, seed=2))
    apart = [loss_of(q[:, v], k, queue).item() for v in range(3)]  # each transcribed above
    assert loss_of(q, k, queue).item() == pytest.approx(sum(apart) / 3, abs=1e-12)


def test_every_view_but_the_key_s_gives_queries_and_small_ones_give_no_key() -> None:
    method, batch = small_method("mocov2"), two_views(5, small=3)
    out, targets = method(batch), method.targets(batch)
    assert (out.q_bvd.shape, targets.k_bd.shape) == ((5, 4, 5), (5, 5))
    moved = batch._replace(views=[batch.views[0], batch.views[1] + 1, *batch.views[2:]])
    assert torch.equal(method(moved).q_bvd, out.q_bvd)
    assert not torch.equal(method.targets(moved).k_bd, targets.k_bd)
    for number in (0, 2, 3, 4):
        moved = batch._replace(views=[v + (k == number) for k, v in enumerate(batch.views)])
        differs = (method(moved).q_bvd != out.q_bvd).any(dim=2).all(dim=0)
        assert differs.tolist() == [query == max(0, number - 1) for query in range(4)]
        assert torch.equal(method.targets(moved).k_bd, targets.k_bd)


def test_closed_forms() -> None:
    K, T, n = 64, 0.2, 4
    same = torch.eye(65, dtype=torch.float64)[:1]
    others = torch.eye(65, dtype=torch.float64)[1:]
    own = torch.cat([same, others[1:]])  # the own key among the negatives
    for queue, expected in ((same.repeat(K, 1), 4.174387), (others, 0.358533), (own, 0.885621)):
        assert loss_of(same.repeat(n, 1), same.repeat(n, 1), queue, T).item() == pytest.approx(
            expected, abs=1e-6
        )


def test_loss_is_invariant_to_order_and_to_scale_of_queries() -> None:
    q, k, queue = normal(6, 5), F.normalize(normal(6, 5, seed=1)), F.normalize(normal(9, 5, seed=2))
    order = normal(6).argsort()
    loss = loss_of(q, k, queue)
    torch.testing.assert_close(loss_of(q[order], k[order], queue.flip(0)), loss)
    torch.testing.assert_close(loss_of(q * torch.arange(1, 7)[:, None], k, queue), loss)


def test_gradient_by_finite_differences_and_none_into_keys_and_queue() -> None:
    k, queue = F.normalize(normal(4, 8, seed=1)), F.normalize(normal(9, 8, seed=2))
    assert torch.autograd.gradcheck(lambda q: loss_of(q, k, queue), normal(4, 8).requires_grad_())
    method, batch = small_method("mocov2"), two_views(4)
    k = F.normalize(normal(4, 5)).requires_grad_()
    method.criterion(method(batch), Targets(k), whole(4)).loss.backward()
    assert k.grad is None
    views = [view.clone().requires_grad_() for view in batch.views]
    assert not method.targets(batch._replace(views=views)).k_bd.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert not method.queue.keys.requires_grad
    assert all(p.grad.any() for p in [*method.encoder.parameters(), *method.projector.parameters()])


def published_step(state: dict, batch: list[Tensor], lr: float, m: float, T: float) -> float:
    """Algorithm 1 of MoCo with SGD: teacher first, then keys, loss against the old queue, enqueue, step."""
    student, teacher, queue = state["student"], state["teacher"], state["queue"]
    q = F.normalize(student(batch[0]), dim=1)
    with torch.no_grad():
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.mul_(m).add_(s, alpha=1 - m)
        k = F.normalize(teacher(batch[1]), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / T
    loss = -logits.log_softmax(dim=1)[:, 0].mean()
    state["queue"] = torch.cat([queue[len(k) :], k])  # oldest first
    for p, g in zip(student.parameters(), torch.autograd.grad(loss, list(student.parameters())), strict=True):
        p.data -= lr * g
    return loss.item()


def test_steps_equal_the_published_order() -> None:
    ours, reference = small_method("mocov2"), small_method("mocov2")
    state = {
        "student": nn.Sequential(reference.encoder, reference.projector),
        "teacher": reference.teacher,
        "queue": reference.queue.keys.clone(),
    }
    trained = [*ours.encoder.parameters(), *ours.projector.parameters()]
    for step in range(7):  # 35 keys through a queue of 16: it wraps twice, and not at a multiple of 5
        batch = two_views(5, seed=step)
        out, targets = ours(batch), ours.targets(batch)
        loss = ours.criterion(out, targets, whole(5)).loss
        for p, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.data -= 0.5 * g
        ours.after_step(out, targets, batch._replace(progress=step / 7))
        expected = published_step(state, list(batch.views), lr=0.5, m=0.9, T=0.2)
        assert loss.item() == pytest.approx(expected, abs=1e-10)
    oldest = int(ours.queue.pointer)
    torch.testing.assert_close(ours.queue.keys.roll(-oldest, dims=0), state["queue"])


def test_own_key_is_scored_before_it_enters_the_queue() -> None:
    method, batch = small_method("mocov2"), two_views(5)
    out, targets = method(batch), method.targets(batch)

    def own_keys_in_queue() -> int:
        return int((targets.k_bd @ method.queue.keys.T > 1 - 1e-9).sum())

    method.criterion(out, targets, whole(5))
    assert own_keys_in_queue() == 0
    method.after_step(out, targets, batch)
    assert own_keys_in_queue() == 5


class PositionMarked(nn.Module):
    """Adds the row number, as batch statistics over neighbours would make a key depend on its place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] + torch.arange(len(x))[:, None]


def test_keys_are_computed_in_shuffled_order_and_come_back_in_order() -> None:
    method, batch = small_method("mocov2"), two_views(6)
    plain = method.targets(batch).k_bd
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(method.targets(batch._replace(shuffle=order)).k_bd, plain)
    method.teacher = PositionMarked()
    place = torch.empty(6, dtype=torch.int64)
    place[order] = torch.arange(6)  # sample order[j] is computed in row j
    expected = F.normalize(batch.views[1].flatten(1)[:, :5] + place[:, None], dim=1)
    torch.testing.assert_close(method.targets(batch._replace(shuffle=order)).k_bd, expected)


def test_shuffled_images_stay_channels_last() -> None:
    method, batch, formats = small_method("mocov2"), two_views(6), []
    views = [view.contiguous(memory_format=torch.channels_last) for view in batch.views]
    method.teacher.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    method.targets(batch._replace(views=views, shuffle=normal(6).argsort()))
    assert formats == [True]


def test_published_head_and_defaults() -> None:
    layers = [type(layer).__name__ for layer in small_method("mocov2").projector]
    assert layers == ["Linear", "ReLU", "Linear"]
    assert all(layer.bias is not None for layer in small_method("mocov2").projector[::2])
    config = MoCoV2Config()
    assert (config.queue_size, config.momentum, config.temperature, config.embed_dim) == (
        65536,
        0.999,
        0.2,
        128,
    )
