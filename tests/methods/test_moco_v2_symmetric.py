"""Both directions of MoCo v2, with a queue for the keys of each view."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.moco_v1 import Embeddings
from vergence.methods.moco_v2 import BothTargets


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


@pytest.mark.parametrize("views", [2, 4])
def test_loss_equals_float64_transcription(views: int) -> None:
    """Mean over both directions and the queries of each; view 1's keys are in `queue`, view 0's in `other_queue`."""
    q, T = normal(4, views, 5) * 2, 0.3
    keys, queues = [unit(4, 5, seed=s) for s in (1, 2)], [unit(9, 5, seed=s) for s in (3, 4)]  # of views 0, 1
    terms = []
    for key_of in (0, 1):
        for query_of in range(views):
            for i in range(4):
                row = [a / math.sqrt(sum(b * b for b in q[i, query_of].tolist())) for a in q[i, query_of]]
                candidates = [keys[key_of][i], *queues[key_of]]
                s = [sum(float(a * b) for a, b in zip(row, key)) / T for key in candidates]
                if query_of != key_of:
                    terms.append(-s[0] + math.log(sum(map(math.exp, s))))
    method = small_method("mocov2", symmetric=True, queue_size=9, temperature=T)
    method.queue.keys.copy_(queues[1])
    method.other_queue.keys.copy_(queues[0])
    loss = method.criterion(Embeddings(q), BothTargets(keys[1], keys[0]), whole(4)).loss
    assert len(terms) == 8 * (views - 1)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-10)


def test_closed_forms_are_those_of_one_direction() -> None:
    axes = torch.eye(65, dtype=torch.float64)
    same, others = axes[:1], axes[1:]
    for queue, expected in ((same.repeat(64, 1), 4.174387), (others, 0.358533)):
        method = small_method("mocov2", symmetric=True, queue_size=64, embed_dim=65, temperature=0.2)
        method.queue.keys.copy_(queue)
        method.other_queue.keys.copy_(queue)
        q, k = same.repeat(3, 1)[:, None].expand(3, 2, 65), same.repeat(3, 1)
        loss = method.criterion(Embeddings(q), BothTargets(k, k), whole(3)).loss
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_swapped_views_with_swapped_queues_are_the_same_training() -> None:
    method, batch = small_method("mocov2", symmetric=True), two_views(5, small=2)
    view_0, view_1, *others = batch.views
    results = []
    for views, queues in (
        (batch.views, (method.queue.keys, method.other_queue.keys)),
        ([view_1, view_0, *others], (method.other_queue.keys, method.queue.keys)),
    ):
        first, other = (each.clone() for each in queues)
        method.queue.keys.copy_(first)
        method.other_queue.keys.copy_(other)
        turned = batch._replace(views=views)
        results.append(method.criterion(method(turned), method.targets(turned), whole(5)))
    torch.testing.assert_close(results[0], results[1])


def test_gradient_by_finite_differences_and_none_into_keys() -> None:
    method = small_method("mocov2", symmetric=True, queue_size=9)
    targets = BothTargets(unit(4, 5, seed=1).requires_grad_(), unit(4, 5, seed=2).requires_grad_())

    def loss(q: Tensor) -> Tensor:
        result: Tensor = method.criterion(Embeddings(q), targets, whole(4)).loss
        return result

    q = normal(4, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(loss, q)
    loss(q).backward()
    assert all(k.grad is None for k in targets)
    assert not any(k.requires_grad for k in method.targets(two_views(4)))


def test_each_queue_gets_the_keys_of_its_view_from_shuffled_images() -> None:
    method, batch = small_method("mocov2", symmetric=True), two_views(5)
    shuffled = batch._replace(shuffle=normal(5).argsort())
    out, targets = method(batch), method.targets(batch)
    torch.testing.assert_close(method.targets(shuffled), targets)
    expected = [F.normalize(method.teacher(view), dim=1) for view in batch.views]
    method.after_step(out, targets, batch)
    torch.testing.assert_close(method.other_queue.keys[:5], expected[0])
    torch.testing.assert_close(method.queue.keys[:5], expected[1])
    assert (int(method.queue.pointer), int(method.other_queue.pointer)) == (5, 5)


def test_one_direction_has_no_second_queue() -> None:
    assert not [name for name in small_method("mocov2").state_dict() if "other" in name]
