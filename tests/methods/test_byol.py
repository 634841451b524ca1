import math

import pytest
import torch
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.byol import BYOLConfig, Embeddings, Targets


def loss_of(p: Tensor, z: Tensor) -> Tensor:
    return small_method("byol").criterion(Embeddings(p), Targets(z), whole(len(p))).loss


def test_loss_equals_float64_transcription() -> None:
    p, z = normal(5, 2, 4) * 3, normal(5, 2, 4, seed=1)

    def hat(u: list[float]) -> list[float]:
        return [a / math.sqrt(sum(b * b for b in u)) for a in u]

    total = 0.0
    for i in range(5):
        for view in (0, 1):
            pairs = zip(hat(p[i, view].tolist()), hat(z[i, 1 - view].tolist()), strict=True)
            total += sum((a - b) ** 2 for a, b in pairs)
    assert loss_of(p, z).item() == pytest.approx(total / 5, abs=1e-10)


@pytest.mark.parametrize(("large", "views"), [(2, 5), (3, 3), (2, 3)])
def test_loss_of_many_views_equals_float64_transcription(large: int, views: int) -> None:
    """The mean over images, full-size views t and other views s of |hat(p^s) - hat(z^t)|^2."""
    p, z, terms = normal(4, views, 6) * 3, normal(4, large, 6, seed=1), []
    for i in range(4):
        for t in range(large):
            for s in range(views):
                if s != t:
                    a, b = p[i, s] / p[i, s].norm(), z[i, t] / z[i, t].norm()
                    terms.append(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))
    method, batch = small_method("byol"), whole(4)._replace(num_large=large)
    loss = method.criterion(Embeddings(p), Targets(z), batch).loss
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-10)


def test_teacher_sees_full_size_views_only() -> None:
    method, batch, sizes = small_method("byol"), two_views(5, small=3), []
    method.teacher[0].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    assert method.targets(batch).z_btd.shape == (5, 2, 5)
    assert sizes == [4, 4]
    assert method(batch).p_bvd.shape == (5, 5, 5)


def test_closed_forms() -> None:
    z = normal(4, 2, 6)
    swapped = z.flip(1)
    orthogonal = torch.cat([z, torch.zeros_like(z)], dim=-1), torch.cat([torch.zeros_like(z), z], dim=-1)
    assert loss_of(swapped, z).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(*orthogonal).item() == pytest.approx(4, abs=1e-6)
    assert loss_of(-swapped, z).item() == pytest.approx(8, abs=1e-6)


def test_loss_is_invariant_to_order_of_samples_and_views_and_to_scale() -> None:
    p, z, order = normal(6, 2, 5), normal(6, 2, 5, seed=1), normal(6).argsort()
    scale = torch.arange(1, 13, dtype=torch.float64).view(6, 2, 1)
    for same in ((p[order], z[order]), (p.flip(1), z.flip(1)), (p * scale, z / scale)):
        torch.testing.assert_close(loss_of(*same), loss_of(p, z))


def test_gradient_by_finite_differences() -> None:
    z = normal(4, 2, 8, seed=1)
    assert torch.autograd.gradcheck(lambda p: loss_of(p, z), normal(4, 2, 8).requires_grad_())


def test_gradient_reaches_the_student_only() -> None:
    method, batch = small_method("byol"), two_views(5)
    targets = method.targets(batch._replace(views=[view.clone().requires_grad_() for view in batch.views]))
    assert not targets.z_btd.requires_grad
    z = targets.z_btd.clone().requires_grad_()
    method.criterion(method(batch), Targets(z), whole(5)).loss.backward()
    assert z.grad is None
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    for part in (method.encoder, method.projector, method.predictor):
        assert all(p.grad is not None for p in part.parameters())
        assert any(p.grad.any() for p in part.parameters())


def test_teacher_uses_the_statistics_of_its_own_batch() -> None:
    method, batch = small_method("byol"), two_views(6)
    assert all(module.training for module in method.teacher.modules())
    means = []
    norm = method.teacher[1][1]
    norm.register_forward_hook(lambda _, __, y: means.append(y.mean(dim=0).abs().max().item()))
    method.targets(batch)
    assert len(means) == 2  # one forward a view
    assert max(means) < 1e-9


def test_teacher_follows_the_new_student_by_the_scheduled_momentum() -> None:
    method, batch = small_method("byol", momentum=0.9), two_views(5)
    old = [p.clone() for p in method.teacher.parameters()]
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in student:
            p.add_(1)
    out, targets = method(batch), method.targets(batch)
    method.after_step(out, targets, batch._replace(progress=0.5))
    m = 1 - 0.1 * (1 + math.cos(math.pi / 2)) / 2  # .95
    for t, before, s in zip(method.teacher.parameters(), old, student, strict=True):
        torch.testing.assert_close(t, m * before + (1 - m) * s)
    still = [p.clone() for p in method.teacher.parameters()]
    method.after_step(out, targets, batch._replace(progress=1.0))
    assert all(torch.equal(a, b) for a, b in zip(method.teacher.parameters(), still, strict=True))


@pytest.mark.parametrize("norm", ["group_ws", "batch"])
def test_without_batch_statistics_no_sample_knows_of_another(norm: str) -> None:
    """BYOL with group norm and standardised weights (arXiv:2010.10241): the batch couples nothing, exactly."""
    method = small_method("byol", hidden_dim=8, projector_norm=norm, predictor_norm=norm)
    batch, gradients = two_views(6), []
    for moved in (0.0, 1.0):
        views = [view.clone() for view in batch.views]
        for view in views:
            view[1:] += moved
            view.requires_grad_()
        seen = batch._replace(views=views)
        out, targets = method(seen), method.targets(seen)
        loss = method.criterion(Embeddings(out.p_bvd[:1]), Targets(targets.z_btd[:1]), whole(1)).loss
        gradients.append(torch.stack([g[0] for g in torch.autograd.grad(loss, views)]))
    assert gradients[0].any()
    assert torch.equal(*gradients) == (norm == "group_ws")


def test_collapse_shows_in_the_metrics() -> None:
    method = small_method("byol")
    losses = method.criterion(Embeddings(torch.ones(8, 2, 5)), Targets(torch.ones(8, 2, 5)), whole(8))
    assert losses.target_std.item() == pytest.approx(0, abs=1e-6)
    spread = method.criterion(Embeddings(torch.ones(512, 2, 16)), Targets(normal(512, 2, 16)), whole(512))
    assert spread.target_std.item() == pytest.approx(16**-0.5, rel=0.05)


def test_published_heads_and_defaults() -> None:
    method = small_method("byol")
    for head in (method.projector, method.predictor):
        assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        assert (head[0].bias is not None, head[3].bias is None) == (True, True)
    config = BYOLConfig()
    assert (config.hidden_dim, config.embed_dim, config.momentum) == (4096, 256, 0.996)


def test_without_a_predictor_the_projection_is_compared() -> None:
    method, batch = small_method("byol", predictor=False), two_views(6)
    z = torch.stack([method.projector(method.encoder(view)) for view in batch.views], dim=1)
    torch.testing.assert_close(method(batch).p_bvd, z)
