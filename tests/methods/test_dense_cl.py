import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_methods import FACTS, normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods.catalog import METHODS
from vergence.methods.dense_cl import DenseCLConfig, Embeddings, Targets, correspondence
from vergence.methods.parts.backbones import EncoderConfig, build_encoder

N, S, C, D = 3, 4, 6, 5  # images, cells, features, embed_dim


def method_of(queue: Tensor, dense_queue: Tensor, **settings: Any) -> Any:
    size, dim = queue.shape
    method = small_method("dense_cl", queue_size=size, embed_dim=dim, **settings)
    method.queue.keys.copy_(queue)
    method.dense_queue.keys.copy_(dense_queue)
    return method


def inputs(seed: int = 0) -> tuple[Embeddings, Targets, Tensor, Tensor]:
    """Of N images, and both queues."""
    out = Embeddings(
        *(2 * normal(N, *shape, seed=seed + k) for k, shape in enumerate([(1, D), (S, D), (S, C)]))
    )
    k, r, n = (F.normalize(normal(N, *shape, seed=seed + 3), dim=-1) for shape in ((D,), (S, D), (D,)))
    queue, dense_queue = (F.normalize(normal(9, D, seed=seed + each), dim=1) for each in (5, 6))
    return out, Targets(k, r, n, normal(N, S, C, seed=seed + 4)), queue, dense_queue


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def term(query: list[float], key: list[float], queue: Tensor, T: float) -> float:
    s = [dot(unit(query), other) / T for other in [key, *queue.tolist()]]
    return math.log(sum(map(math.exp, s))) - s[0]


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.0, 1.0])
def test_loss_equals_float64_transcription(weight: float) -> None:
    (out, targets, queue, dense_queue), T = inputs(), 0.3
    total, dense = 0.0, 0.0
    for i in range(N):
        total += term(out.q_bvd[i, 0].tolist(), targets.k_bd[i].tolist(), queue, T) / N
        for cell in range(S):
            cosines = [
                dot(unit(out.f_bsc[i, cell].tolist()), unit(other)) for other in targets.f_bsc[i].tolist()
            ]
            match = cosines.index(max(cosines))
            dense += term(out.r_bsd[i, cell].tolist(), targets.r_bsd[i, match].tolist(), dense_queue, T) / (
                N * S
            )
    method = method_of(queue, dense_queue, temperature=T, dense_weight=weight)
    losses = method.criterion(out, targets, whole(N))
    assert losses.loss.item() == pytest.approx((1 - weight) * total + weight * dense, abs=1e-10)
    assert losses.dense_loss.item() == pytest.approx(dense, abs=1e-10)


def test_closed_forms() -> None:
    K, T = 64, 0.2
    unit_rows = torch.eye(65, dtype=torch.float64)
    same, others = unit_rows[:1], unit_rows[1:]
    out = Embeddings(same[None], same.repeat(1, S, 1), normal(1, S, C))
    targets = Targets(same, same.repeat(1, S, 1), same, normal(1, S, C))
    for queue, expected in ((same.repeat(K, 1), 4.174387), (others, 0.358533)):
        losses = method_of(queue, queue, temperature=T).criterion(out, targets, whole(1))
        assert losses.loss.item() == pytest.approx(expected, abs=1e-6)
        assert losses.dense_loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_cell_is_found_again_wherever_it_went() -> None:
    features, order = normal(2, S, C), torch.tensor([2, 0, 3, 1])
    assert torch.equal(correspondence(features, features), torch.arange(S).expand(2, S))
    assert torch.equal(correspondence(features, 3 * features[:, order]), order.argsort().expand(2, S))
    crowd = features[:, :1].repeat(1, S, 1)  # nothing keeps all cells from choosing one
    assert torch.equal(correspondence(crowd, features), torch.zeros(2, S, dtype=torch.int64))


def test_matching_is_by_features_and_not_by_projections() -> None:
    out, targets, queue, dense_queue = inputs()
    method = method_of(queue, dense_queue)
    loss = method.criterion(out, targets, whole(N)).dense_loss
    order = torch.tensor([2, 0, 3, 1])
    both = targets._replace(r_bsd=targets.r_bsd[:, order], f_bsc=targets.f_bsc[:, order])
    torch.testing.assert_close(method.criterion(out, both, whole(N)).dense_loss, loss)
    projections = targets._replace(r_bsd=targets.r_bsd[:, order])
    assert method.criterion(out, projections, whole(N)).dense_loss != loss


def test_gradient_by_finite_differences_and_none_into_keys_and_features() -> None:
    out, targets, queue, dense_queue = inputs()
    method = method_of(queue, dense_queue, temperature=0.5)

    def loss(q: Tensor, r: Tensor) -> Tensor:
        found: Tensor = method.criterion(Embeddings(q, r, out.f_bsc), targets, whole(N)).loss
        return found

    assert torch.autograd.gradcheck(loss, [out.q_bvd.requires_grad_(), out.r_bsd.requires_grad_()])
    asked = Targets(*(x.clone().requires_grad_() for x in targets))
    method.criterion(out, asked, whole(N)).loss.backward()
    assert all(x.grad is None for x in asked)
    assert not method(two_views(N)).f_bsc.requires_grad


def test_small_crops_give_global_queries_only() -> None:
    method, batch = small_method("dense_cl"), two_views(5, small=3)
    out, targets = method(batch), method.targets(batch)
    assert (out.q_bvd.shape, out.r_bsd.shape) == ((5, 4, 5), (5, 4, 5))
    moved = batch._replace(views=[*batch.views[:2], *(view + 1 for view in batch.views[2:])])
    after = method(moved)
    assert torch.equal(after.r_bsd, out.r_bsd)
    assert not torch.equal(after.q_bvd[:, 1:], out.q_bvd[:, 1:])
    assert torch.equal(method.targets(moved).k_bd, targets.k_bd)


def test_queues_take_the_keys_after_the_loss_and_the_dense_one_a_mean_per_image() -> None:
    method, batch = small_method("dense_cl"), two_views(5)
    old = [method.queue.keys.clone(), method.dense_queue.keys.clone()]
    out, targets = method(batch), method.targets(batch)
    method.criterion(out, targets, whole(5))
    assert torch.equal(method.queue.keys, old[0])
    assert torch.equal(method.dense_queue.keys, old[1])
    method.after_step(out, targets, batch)
    encoder, _, dense = small_method("dense_cl").teacher
    raw = dense(encoder.cells(encoder.features(batch.views[1])))
    torch.testing.assert_close(method.dense_queue.keys[:5], F.normalize(raw.mean(dim=1), dim=1))
    assert torch.equal(method.queue.keys[:5], targets.k_bd)
    assert torch.equal(method.dense_queue.keys[5:], old[1][5:])


def test_teacher_follows_all_three_networks() -> None:
    method, batch = small_method("dense_cl"), two_views(3)
    old = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in [
            *method.encoder.parameters(),
            *method.projector.parameters(),
            *method.dense_projector.parameters(),
        ]:
            p.add_(1)
    method.after_step(method(batch), method.targets(batch), batch)
    for before, p in zip(old, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(p, before + 0.1)


def test_keys_come_back_from_their_shuffle() -> None:
    method, batch = small_method("dense_cl"), two_views(6)
    shuffled = method.targets(batch._replace(shuffle=torch.tensor([3, 1, 5, 0, 2, 4])))
    for x, plain in zip(shuffled, method.targets(batch), strict=True):
        torch.testing.assert_close(x, plain)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_cells_of_real_backbones(name: str) -> None:
    vit = name.startswith("vit")
    encoder = build_encoder(EncoderConfig(name=name, depth=1 if vit else None), image_size=64)
    images = normal(2, 3, 64, 64).float()
    features = encoder.eval().features(images)
    torch.testing.assert_close(encoder.pool(features), encoder(images))
    cells = encoder.cells(features)
    assert cells.shape == ((2, 16, 192) if vit else (2, 4, 512))
    expected = features[:, 5] if vit else features[:, :, 1, 0]  # after the class token; row 1, column 0
    torch.testing.assert_close(cells[:, 4 if vit else 2], expected)
    config, cls = METHODS["dense_cl"]
    method: Any = cls.build(config(queue_size=8), encoder, FACTS)
    assert method(two_views(2)._replace(views=[images, images])).r_bsd.shape == (2, cells.shape[1], 128)


def test_published_heads_and_defaults() -> None:
    method = small_method("dense_cl", hidden_dim=400)
    for head in (method.projector, method.dense_projector):
        assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear"]
        assert all(layer.bias is not None for layer in head[::2])
    first = method.projector[0]
    assert isinstance(first, nn.Linear)
    assert not first.bias.any()
    assert first.weight.std().item() == pytest.approx(math.sqrt(2 / 6), rel=0.1)
    config = DenseCLConfig()
    assert (config.queue_size, config.momentum, config.temperature, config.dense_weight) == (
        65536,
        0.999,
        0.2,
        0.5,
    )
    assert (config.hidden_dim, config.embed_dim) == (2048, 128)
