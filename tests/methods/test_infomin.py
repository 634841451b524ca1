import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole

from vergence.methods.infomin import InfoMinConfig
from vergence.methods.moco_v1 import Embeddings, Targets
from vergence.methods.parts.jigsaw import JigsawHead, pieces


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.0])
def test_loss_is_both_of_moco_s_by_their_weight(weight: float) -> None:
    method = small_method("infomin", jigsaw_weight=weight, temperature=0.3)
    q, k = normal(4, 2, 5) * 2, F.normalize(normal(4, 5, seed=1), dim=1)
    terms = []
    for v in range(2):
        total = 0.0
        for i in range(4):
            row = F.normalize(q[i, v], dim=0).tolist()
            keys = [k[i].tolist(), *method.queue.keys.tolist()]
            s = [sum(a * b for a, b in zip(row, key, strict=True)) / 0.3 for key in keys]
            total += (math.log(sum(map(math.exp, s))) - s[0]) / 4
        terms.append(total)
    losses = method.criterion(Embeddings(q), Targets(k), whole(4))
    assert losses.loss.item() == pytest.approx(weight * terms[1] + (1 - weight) * terms[0], abs=1e-10)
    assert losses.shared_nats.item() == pytest.approx(math.log(17) - terms[0], abs=1e-10)


def test_closed_forms() -> None:
    K, rows = 64, torch.eye(65, dtype=torch.float64)
    method = small_method("infomin", queue_size=K, embed_dim=65, temperature=0.2)
    for queue, expected in ((rows[:1].repeat(K, 1), 4.174387), (rows[1:], 0.358533)):
        method.queue.keys.copy_(queue)
        loss = method.criterion(Embeddings(rows[:1, None].repeat(1, 2, 1)), Targets(rows[:1]), whole(1)).loss
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_pieces_are_of_nine_cells() -> None:
    side, n = 255, 3
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.stack([ys, xs, ys * 0 + 7]).float()
    images = torch.stack([image, image + 1000, image + 2000])
    cut = pieces(images, torch.tensor(3), torch.tensor([5, 9, 2]), 0.25)
    assert cut.shape == (9 * n, 3, 64, 64)
    for number in range(9):
        for i in range(n):
            piece = cut[number * n + i] - 1000 * i
            top, left = (int(piece[axis, 0, 0]) for axis in (0, 1))
            assert torch.equal(piece, image[:, top : top + 64, left : left + 64])
            for corner, cell in ((top, number // 3), (left, number % 3)):
                assert 85 * cell <= corner <= 85 * cell + 21


def test_order_and_places_are_of_each_sample_and_moment() -> None:
    torch.manual_seed(0)
    head, images = JigsawHead(4, 7, 5, "none"), torch.rand(1, 3, 255, 255)
    h = torch.randn(9, 1, 4).expand(9, 3, 4).flatten(0, 1)
    seed = torch.tensor(3)
    ids = torch.tensor([5, 9, 5])
    z = head(h, seed, ids, 0.5)  # the same nine pieces, three times
    torch.testing.assert_close(z[0], z[2])
    assert not torch.allclose(z[0], z[1])
    assert not torch.allclose(z, head(h, seed, ids, 0.75))
    cut = pieces(images.expand(3, -1, -1, -1), seed, ids, 0.5).unflatten(0, (9, 3))
    assert torch.equal(cut[:, 0], cut[:, 2])
    assert not torch.equal(cut[:, 0], cut[:, 1])


def test_pieces_come_from_the_third_full_size_view_which_gives_no_query_of_its_own() -> None:
    method, batch = small_method("infomin"), two_views(4)
    three = batch._replace(views=[*batch.views, batch.views[0] + 1], num_large=3)
    out = method(three)
    assert out.q_bvd.shape == method(batch).q_bvd.shape == (4, 2, 5)
    moved = method(three._replace(views=[*batch.views, batch.views[0] - 1]))
    assert torch.equal(moved.q_bvd[:, 0], out.q_bvd[:, 0])
    assert not torch.equal(moved.q_bvd[:, 1], out.q_bvd[:, 1])
    plain = method(batch._replace(views=[batch.views[0] * 2, batch.views[1]]))
    assert not torch.equal(plain.q_bvd[:, 1], method(batch).q_bvd[:, 1])


def test_published_defaults() -> None:
    config = InfoMinConfig()
    assert (config.temperature, config.jigsaw_weight, config.momentum, config.queue_size) == (
        0.15,
        0.5,
        0.999,
        65536,
    )
