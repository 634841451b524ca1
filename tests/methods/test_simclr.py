import math

import pytest
import torch
from small_methods import normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods import simclr
from vergence.methods.simclr import Embeddings, SimCLRConfig


def loss_of(z_bvd: Tensor, temperature: float = 0.2) -> Tensor:
    return (
        small_method("simclr", temperature=temperature)
        .criterion(Embeddings(z_bvd), (), whole(len(z_bvd)))
        .loss
    )


def transcription(z_bvd: Tensor, temperature: float) -> float:
    """Eq. 1 in loops: z_1..z_2N with the positive of i at i + N mod 2N."""
    n = len(z_bvd)
    z = [z_bvd[i % n, i // n].tolist() for i in range(2 * n)]

    def s(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / math.sqrt(sum(a * a for a in z[i])) / math.sqrt(sum(b * b for b in z[j]))

    total = 0.0
    for i in range(2 * n):
        denominator = sum(math.exp(s(i, k) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(s(i, (i + n) % (2 * n)) / temperature) / denominator)
    return total / (2 * n)


def multi_crop_transcription(z_bvd: Tensor, temperature: float) -> float:
    """Each other view of the image is a positive; it and all views of other images are the candidates."""
    (n, views, _), total = z_bvd.shape, 0.0
    hat = (z_bvd / z_bvd.norm(dim=2, keepdim=True)).tolist()

    def e(i: int, v: int, k: int, u: int) -> float:
        return math.exp(sum(a * b for a, b in zip(hat[i][v], hat[k][u], strict=True)) / temperature)

    for i in range(n):
        for v in range(views):
            negatives = sum(e(i, v, k, u) for k in range(n) if k != i for u in range(views))
            for u in range(views):
                if u != v:
                    positive = e(i, v, i, u)
                    total -= math.log(positive / (positive + negatives))
    return total / (n * views * (views - 1))


@pytest.mark.parametrize(("n", "views"), [(2, 2), (2, 3), (5, 6)])
def test_loss_of_many_views_equals_float64_transcription(n: int, views: int) -> None:
    z_bvd = normal(n, views, 5) * 3 + 1
    assert loss_of(z_bvd).item() == pytest.approx(multi_crop_transcription(z_bvd, 0.2), abs=1e-10)


def test_closed_forms_of_many_views() -> None:
    N, V, T = 6, 4, 0.2
    collapsed = torch.ones(N, V, 16, dtype=torch.float64)
    assert loss_of(collapsed, T).item() == pytest.approx(3.044522, abs=1e-6)  # ln(1 + V (N - 1))
    orthogonal = torch.eye(N, 16, dtype=torch.float64)[:, None].repeat(1, V, 1)
    assert loss_of(orthogonal, T).item() == pytest.approx(0.126420, abs=1e-6)


@pytest.mark.parametrize("n", [2, 4, 7])
def test_loss_equals_float64_transcription(n: int) -> None:
    z_bvd = normal(n, 2, 5) * 3 + 1
    assert loss_of(z_bvd).item() == pytest.approx(transcription(z_bvd, 0.2), abs=1e-10)


def test_closed_forms() -> None:
    N, T = 8, 0.2
    collapsed = torch.ones(N, 2, 16, dtype=torch.float64)
    assert loss_of(collapsed, T).item() == pytest.approx(math.log(2 * N - 1), abs=1e-6)
    orthogonal = torch.eye(N, 16, dtype=torch.float64)[:, None].repeat(1, 2, 1)
    assert loss_of(orthogonal, T).item() == pytest.approx(0.090143, abs=1e-6)
    simplex = torch.eye(N, dtype=torch.float64) - 1 / N
    assert loss_of(simplex[:, None].repeat(1, 2, 1), T).item() == pytest.approx(0.045145, abs=1e-6)


def test_metrics_of_aligned_and_of_collapsed_embeddings() -> None:
    method = small_method("simclr")
    aligned = torch.eye(6, dtype=torch.float64)[:, None].repeat(1, 2, 1)
    losses = method.criterion(Embeddings(aligned), (), whole(6))
    assert (losses.accuracy, losses.positive_cosine) == (1, 1)
    losses = method.criterion(Embeddings(torch.ones(6, 2, 4)), (), whole(6))
    assert losses.accuracy == 0  # every candidate ties
    assert not losses.accuracy.requires_grad
    assert not losses.positive_cosine.requires_grad


def test_loss_is_invariant_to_order_of_samples_and_views_and_to_scale() -> None:
    z = normal(6, 2, 5)
    scale = torch.arange(1, 13, dtype=torch.float64).view(6, 2, 1)
    for same in (z[normal(6).argsort()], z.flip(1), z * scale):
        torch.testing.assert_close(loss_of(same), loss_of(z))


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(loss_of, normal(4, 2, 8).requires_grad_())


@pytest.mark.parametrize("views", [2, 5])
def test_blocks_with_recomputation_equal_the_whole_matrix(
    views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = normal(11, views, 5).requires_grad_()
    losses = small_method("simclr").criterion(Embeddings(z), (), whole(11))
    (expected,) = torch.autograd.grad(losses.loss, z)
    monkeypatch.setattr(simclr, "LARGE", 1)
    monkeypatch.setattr(simclr, "BLOCK", 4)  # 22 anchors: the last block is short
    blocks = small_method("simclr").criterion(Embeddings(z), (), whole(11))
    torch.testing.assert_close(blocks, losses)
    torch.testing.assert_close(torch.autograd.grad(blocks.loss, z)[0], expected)


def test_projector_is_the_published_one() -> None:
    method = small_method("simclr")
    names = [name for name, _ in method.projector.named_parameters()]
    assert names == ["0.0.weight", "0.1.weight", "0.1.bias", "0.3.weight", "1.weight"]  # last norm: no offset
    config = SimCLRConfig()
    assert (config.hidden_dim, config.embed_dim, config.temperature) == (2048, 128, 0.1)


def test_head_is_an_mlp_a_linear_map_or_none() -> None:
    batch = two_views(6)
    h = torch.stack([*small_method("simclr").encoder(torch.cat([*batch.views])).chunk(2)], dim=1)
    torch.testing.assert_close(small_method("simclr", head="none")(batch).z_bvd, h)
    linear = small_method("simclr", head="linear").projector
    assert [module for module in linear.modules() if isinstance(module, nn.ReLU)] == []
    assert sum(isinstance(module, nn.Linear) for module in linear.modules()) == 1
