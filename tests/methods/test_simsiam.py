import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods.simsiam import Embeddings, SimSiamConfig


def loss_of(p: Tensor, z: Tensor, large: int = 2) -> Tensor:
    batch = whole(len(p))._replace(num_large=large)
    return small_method("simsiam").criterion(Embeddings(p, z), (), batch).loss


def cosine(a: list[float], b: list[float]) -> float:
    def dot(u: list[float], v: list[float]) -> float:
        return sum(x * y for x, y in zip(u, v, strict=True))

    return dot(a, b) / math.sqrt(dot(a, a)) / math.sqrt(dot(b, b))


def test_loss_equals_float64_transcription() -> None:
    p, z = normal(5, 2, 4) * 3, normal(5, 2, 4, seed=1)
    total = 0.0
    for i in range(5):
        total -= cosine(p[i, 0].tolist(), z[i, 1].tolist()) / 2
        total -= cosine(p[i, 1].tolist(), z[i, 0].tolist()) / 2
    assert loss_of(p, z).item() == pytest.approx(total / 5, abs=1e-10)


@pytest.mark.parametrize(("large", "views"), [(2, 5), (3, 3)])
def test_loss_of_many_views_is_the_mean_over_full_size_targets(large: int, views: int) -> None:
    p, z, terms = normal(4, views, 6), normal(4, views, 6, seed=1), []
    for i in range(4):
        for t in range(large):
            terms += [-cosine(p[i, s].tolist(), z[i, t].tolist()) for s in range(views) if s != t]
    assert loss_of(p, z, large).item() == pytest.approx(sum(terms) / len(terms), abs=1e-10)


def test_closed_forms() -> None:
    z = normal(4, 2, 6)
    zeros = torch.zeros_like(z)
    assert loss_of(z.flip(1), z).item() == pytest.approx(-1, abs=1e-6)
    assert loss_of(torch.cat([z, zeros], -1), torch.cat([zeros, z], -1)).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(-z.flip(1), z).item() == pytest.approx(1, abs=1e-6)


def test_gradient_by_finite_differences() -> None:
    z = normal(4, 2, 8, seed=1)
    assert torch.autograd.gradcheck(lambda p: loss_of(p, z), normal(4, 2, 8).requires_grad_())


def test_step_equals_algorithm_1() -> None:
    """Networks, loss and gradient of every parameter, written down from the paper's pseudo-code."""
    method, batch = small_method("simsiam"), two_views(6)
    method.criterion(method(batch), (), whole(6)).loss.backward()
    f = nn.Sequential(method.encoder, method.projector)
    x1, x2 = batch.views
    z1, z2 = f(x1), f(x2)
    p1, p2 = method.predictor(z1), method.predictor(z2)

    def D(p: Tensor, z: Tensor) -> Tensor:
        return -(F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(dim=1).mean()

    expected = torch.autograd.grad(D(p1, z2) / 2 + D(p2, z1) / 2, list(method.parameters()))
    for (name, p), g in zip(method.named_parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, msg=name)
    assert all(g.abs().max() > 0 for g in expected)


def test_no_gradient_flows_into_what_is_predicted() -> None:
    method, batch = small_method("simsiam"), two_views(6)
    out = method(batch)
    assert out.p_bvd.requires_grad
    assert not out.z_bvd.requires_grad
    p, z = (x.detach().requires_grad_() for x in out)
    method.criterion(Embeddings(p, z), (), whole(6)).loss.backward()
    assert z.grad is None
    assert p.grad is not None
    assert p.grad.any()


def test_collapse_shows_in_the_metrics() -> None:
    method, ones = small_method("simsiam"), torch.ones(8, 2, 5)
    losses = method.criterion(Embeddings(ones, ones), (), whole(8))
    assert (losses.loss.item(), losses.target_std.item()) == pytest.approx((-1, 0), abs=1e-6)
    spread = method.criterion(Embeddings(torch.ones(512, 2, 16), normal(512, 2, 16).float()), (), whole(512))
    assert spread.target_std.item() == pytest.approx(16**-0.5, rel=0.05)


def test_published_heads_and_defaults() -> None:
    method = small_method("simsiam")
    layers, last = method.projector
    assert [type(layer).__name__ for layer in layers] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert all(layer.bias is None for layer in layers[::3])
    assert (type(last), last.weight, last.bias) == (nn.BatchNorm1d, None, None)
    assert [type(layer).__name__ for layer in method.predictor] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert (method.predictor[0].bias is None, method.predictor[3].bias is None) == (True, False)
    config = SimSiamConfig()
    assert (config.hidden_dim, config.embed_dim, config.bottleneck_dim) == (2048, 2048, 512)


def test_ablations_leave_out_predictor_and_stop_gradient() -> None:
    method, batch = small_method("simsiam", predictor=False, stop_gradient=False), two_views(6)
    out = method(batch)
    assert torch.equal(out.p_bvd, out.z_bvd)
    loss = method.criterion(out, (), whole(6)).loss
    gradients = torch.autograd.grad(loss, list(method.parameters()), retain_graph=True)
    p = out.p_bvd
    expected = -F.cosine_similarity(p[:, 0], p[:, 1]).mean()  # both terms, and gradient through both sides
    torch.testing.assert_close(loss, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected, list(method.parameters())), strict=True):
        torch.testing.assert_close(one, other)
