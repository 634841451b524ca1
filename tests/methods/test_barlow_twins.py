import math
from typing import Literal

import pytest
import torch
from small_methods import normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods.barlow_twins import BarlowTwinsConfig, Embeddings, Predictions

E = 1e-5
FORMS = [
    {"predictor": predictor, "stop_gradient": stop} for predictor in (False, True) for stop in (False, True)
]


def loss_of(z: Tensor, weight: float | Literal["mean"] = 0.0051) -> Tensor:
    return (
        small_method("barlow_twins", redundancy_weight=weight)
        .criterion(Embeddings(z), (), whole(len(z)))
        .loss
    )


def whitened(n: int, d: int) -> Tensor:
    """(n, d) with zero mean and identity covariance."""
    z = normal(n, d)
    q, _ = torch.linalg.qr(z - z.mean(dim=0))
    return q * math.sqrt(n)


def transcription(one: Tensor, other: Tensor) -> float:
    """The loss of two views (n, d) with lambda 0.0051, in plain numbers."""
    (n, d), bars = one.shape, []
    for view in (one, other):
        columns = []
        for j in range(d):
            column = [view[i, j].item() for i in range(n)]
            mean = sum(column) / n
            var = sum((x - mean) ** 2 for x in column) / n
            columns.append([(x - mean) / math.sqrt(var + E) for x in column])
        bars.append(columns)
    total = 0.0
    for j in range(d):
        for k in range(d):
            c = sum(a * b for a, b in zip(bars[0][j], bars[1][k], strict=True)) / n
            total += (1 - c) ** 2 if j == k else 0.0051 * c**2
    return total


@pytest.mark.parametrize("n", [2, 4, 9])  # small n tells 1 / N from 1 / (N - 1)
def test_loss_equals_float64_transcription(n: int) -> None:
    z = normal(n, 2, 3) * 2 + 1
    assert loss_of(z).item() == pytest.approx(transcription(z[:, 0], z[:, 1]), abs=1e-10)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("large", "views"), [(2, 2), (2, 4), (3, 3)])
def test_loss_of_every_form_equals_float64_transcription(
    form: dict[str, bool], large: int, views: int
) -> None:
    z = normal(7, views, 3) * 2 + 1
    p = normal(7, views, 3, seed=1) - 1 if form["predictor"] else z
    method = small_method("barlow_twins", redundancy_weight=0.0051, **form)
    out = Predictions(z, p) if form["predictor"] else Embeddings(z)
    losses = method.criterion(out, (), whole(7)._replace(num_large=large))
    terms = [transcription(z[:, t], p[:, s]) for t in range(large) for s in range(views) if s != t]
    if not any(form.values()):  # a pair once, which matters where only one of it is of full size
        terms = [transcription(z[:, t], z[:, s]) for t in range(large) for s in range(t + 1, views)]
    assert losses.loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-10)
    torch.testing.assert_close(losses.invariance + losses.redundancy, losses.loss.detach())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_step_of_every_form_equals_its_equation(form: dict[str, bool]) -> None:
    """Networks, loss and gradient of every parameter, written down from the docstring."""
    method, batch = small_method("barlow_twins", redundancy_weight=0.0051, **form), two_views(6)
    method.criterion(method(batch), (), whole(6)).loss.backward()
    q = method.predictor if form["predictor"] else nn.Identity()
    z1, z2 = (method.projector(method.encoder(view)) for view in batch.views)
    p1, p2 = q(z1), q(z2)

    def bar(x: Tensor) -> Tensor:
        return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + E).sqrt()

    def L(z: Tensor, p: Tensor) -> Tensor:
        c = bar(z.detach() if form["stop_gradient"] else z).T @ bar(p) / 6
        weights = torch.full_like(c, 0.0051).fill_diagonal_(1.0)
        return (weights * (c - torch.eye(5)).square()).sum()

    expected = torch.autograd.grad(L(z1, p2) / 2 + L(z2, p1) / 2, list(method.parameters()))
    for (name, p), g in zip(method.named_parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, msg=name, rtol=1e-6, atol=1e-9)
    assert sum(p.grad.abs().max() > 1e-6 for p in method.parameters()) > len(expected) / 2


def test_stopped_branch_has_no_gradient() -> None:
    method, batch = small_method("barlow_twins", predictor=True, stop_gradient=True), two_views(6)
    out = method(batch)
    assert out.p_bvd.requires_grad
    assert not out.z_bvd.requires_grad
    z, p = (x.detach().requires_grad_() for x in out)
    method.criterion(Predictions(z, p), (), whole(6)).loss.backward()
    assert z.grad is None
    assert p.grad is not None
    assert p.grad.any()


def test_predictor_alone_leaves_a_gradient_to_both_branches() -> None:
    method, batch = small_method("barlow_twins", predictor=True), two_views(6)
    z, p = (x.detach().requires_grad_() for x in method(batch))
    method.criterion(Predictions(z, p), (), whole(6)).loss.backward()
    assert z.grad.any()
    assert p.grad.any()


def test_stop_gradient_alone_halves_the_gradient_of_two_views() -> None:
    gradients: list[Tensor] = []
    for stop in (False, True):
        z = normal(9, 2, 5).requires_grad_()
        method = small_method("barlow_twins", stop_gradient=stop)
        gradients += torch.autograd.grad(method.criterion(Embeddings(z), (), whole(9)).loss, z)
    torch.testing.assert_close(gradients[1], gradients[0] / 2)


def test_symmetric_form_has_the_weights_it_always_had() -> None:
    names = small_method("barlow_twins").state_dict()
    assert not [name for name in names if "predictor" in name]
    one, other = (small_method("barlow_twins", predictor=predictor).projector for predictor in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("d", [2, 5])
def test_mean_balanced_form_is_d_times_both_means(d: int) -> None:
    z = normal(9, 2, d) * 2 + 1
    bars = (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + E).sqrt()
    c = (bars[:, 0].T @ bars[:, 1] / 9).tolist()
    on_diag = [(1 - c[j][j]) ** 2 for j in range(d)]
    off_diag = [c[j][k] ** 2 for j in range(d) for k in range(d) if j != k]
    expected = d * (sum(on_diag) / len(on_diag) + sum(off_diag) / len(off_diag))
    assert loss_of(z, "mean").item() == pytest.approx(expected, abs=1e-10)
    assert loss_of(z, 1 / (d - 1)).item() == pytest.approx(expected, abs=1e-10)


def test_closed_form_of_the_mean_balanced_form() -> None:
    d = 16
    rank_one = whitened(64, 1).repeat(1, d)
    expected = d * (E / (1 + E)) ** 2 + d / (1 + E) ** 2  # about d, as for a constant
    assert loss_of(torch.stack([rank_one, rank_one], dim=1), "mean").item() == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize(("large", "views"), [(2, 5), (3, 3)])
def test_loss_of_many_views_is_the_mean_over_pairs_with_a_full_size_one(large: int, views: int) -> None:
    z, losses = normal(7, views, 3) * 2 + 1, []
    for t in range(views):
        for s in range(t):
            if min(t, s) < large:
                losses.append(loss_of(z[:, [s, t]]).item())  # which is transcribed above
    assert len(losses) == {(2, 5): 7, (3, 3): 3}[large, views]
    method = small_method("barlow_twins", redundancy_weight=0.0051)
    loss = method.criterion(Embeddings(z), (), whole(7)._replace(num_large=large)).loss
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)


def test_closed_forms() -> None:
    d, n, weight = 16, 64, 0.0051
    assert loss_of(torch.ones(n, 2, d, dtype=torch.float64)).item() == pytest.approx(d, abs=1e-6)
    rank_one = whitened(n, 1).repeat(1, d)
    expected = d * (E / (1 + E)) ** 2 + weight * d * (d - 1) / (1 + E) ** 2
    assert expected == pytest.approx(1.223976, abs=1e-6)
    assert loss_of(torch.stack([rank_one, rank_one], dim=1)).item() == pytest.approx(expected, abs=1e-9)
    z = whitened(n, d)
    assert loss_of(torch.stack([z, z], dim=1)).item() == pytest.approx(d * (E / (1 + E)) ** 2, abs=1e-12)
    assert loss_of(torch.stack([z, -z], dim=1)).item() == pytest.approx(63.999360, abs=1e-6)


def test_independent_views_give_the_expected_mean() -> None:
    d, n, weight = 8, 64, 0.0051
    values = [loss_of(normal(n, 2, d, seed=seed)).item() for seed in range(200)]
    assert sum(values) / 200 == pytest.approx(
        d * (1 + 1 / (n - 1)) + weight * d * (d - 1) / (n - 1), rel=0.01
    )


def test_loss_is_invariant_to_order_of_samples_and_views() -> None:
    z = normal(9, 2, 5)
    for same in (z[normal(9).argsort()], z.flip(1)):
        torch.testing.assert_close(loss_of(same), loss_of(z))


def test_loss_is_invariant_to_scale_and_offset_of_each_dimension() -> None:
    z = normal(9, 2, 5)
    rescaled = z * torch.tensor([1.0, 2.0, 5.0, 30.0, 100.0]) + torch.arange(5)
    torch.testing.assert_close(loss_of(rescaled), loss_of(z), atol=1e-4, rtol=1e-4)  # E is not rescaled


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(loss_of, normal(4, 2, 8).requires_grad_())


def test_terms_add_up_and_published_head_and_defaults() -> None:
    method = small_method("barlow_twins")
    losses = method.criterion(Embeddings(normal(9, 2, 5)), (), whole(9))
    torch.testing.assert_close(losses.invariance + losses.redundancy, losses.loss)
    layers = [type(layer).__name__ for layer in method.projector]
    assert layers == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert all(layer.bias is None for layer in method.projector[::3])
    config = BarlowTwinsConfig()
    assert (config.hidden_dim, config.embed_dim, config.redundancy_weight) == (8192, 8192, 5.1e-3)
