import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_methods import FACTS, normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods.catalog import METHODS
from vergence.methods.dino import DINOConfig, Embeddings, Losses, Targets
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.methods.schedule import Schedule


def losses_of(student: Tensor, teacher: Tensor, center: Tensor | None = None, **overrides: Any) -> Losses:
    method = small_method("dino", **{"outputs": student.shape[-1], **overrides})
    if center is not None:
        method.center.copy_(center)
    z = normal(*student.shape[:2], 5)
    found: Losses = method.criterion(Embeddings(z, student), Targets(teacher), whole(len(student)))
    return found


def softmax(row: list[float], T: float) -> list[float]:
    powers = [math.exp(x / T) for x in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize(("large", "views"), [(2, 2), (2, 5), (3, 3)])
def test_loss_equals_float64_transcription(large: int, views: int) -> None:
    student, teacher, center = normal(4, views, 6), normal(4, large, 6, seed=1), normal(6, seed=2)
    total, terms = 0.0, 0
    for t in range(large):
        for s in range(views):
            if s == t:
                continue
            terms += 1
            for i in range(4):
                p_t = softmax((teacher[i, t] - center).tolist(), 0.3)
                p_s = softmax(student[i, s].tolist(), 0.5)
                total -= sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True)) / 4
    found = losses_of(student, teacher, center, student_temperature=0.5, teacher_temperature=0.3)
    assert found.loss.item() == pytest.approx(total / terms, abs=1e-10)
    assert (found.target_entropy + found.kl).item() == pytest.approx(total / terms, abs=1e-10)


def test_closed_forms() -> None:
    flat = torch.zeros(2, 2, 65536, dtype=torch.float64)
    assert losses_of(flat, flat).loss.item() == pytest.approx(11.090355, abs=1e-6)
    one = torch.zeros(2, 2, 4096, dtype=torch.float64)
    one[..., 7] = 1.0
    assert losses_of(one, one, teacher_temperature=0.04).loss.item() == pytest.approx(0.170513, abs=1e-6)
    assert losses_of(torch.zeros_like(one), one).loss.item() == pytest.approx(8.317766, abs=1e-6)


def test_collapse_shows() -> None:
    """To one output: its use is 0. To flat logits: full entropy, and nothing left to learn."""
    one = torch.zeros(4, 2, 8, dtype=torch.float64)
    one[..., 3] = 5.0
    assert losses_of(one, one).output_use.item() == pytest.approx(0, abs=1e-9)
    flat = losses_of(one * 0, one * 0)
    assert flat.kl.item() == pytest.approx(0, abs=1e-9)
    assert flat.target_entropy.item() == pytest.approx(math.log(8))


def test_gradient_by_finite_differences_and_none_into_the_teacher() -> None:
    teacher = normal(3, 2, 6, seed=1).requires_grad_()

    def loss(student: Tensor) -> Tensor:
        return losses_of(student, teacher, student_temperature=0.5, teacher_temperature=0.3).loss

    assert torch.autograd.gradcheck(loss, normal(3, 3, 6).requires_grad_())
    loss(normal(3, 3, 6).requires_grad_()).backward()
    assert teacher.grad is None
    method, batch = small_method("dino"), two_views(4)
    views = [view.clone().requires_grad_() for view in batch.views]
    assert not method.targets(batch._replace(views=views)).logits_btk.requires_grad
    assert all(not p.requires_grad for p in method.teacher.parameters())


def test_the_teacher_sees_full_size_views_only() -> None:
    method, batch = small_method("dino"), two_views(5, small=3)
    out, targets = method(batch), method.targets(batch)
    assert (out.z_bvd.shape, out.logits_bvk.shape) == ((5, 5, 5), (5, 5, 8))
    assert targets.logits_btk.shape == (5, 2, 8)
    moved = batch._replace(views=[*batch.views[:2], *(view + 1 for view in batch.views[2:])])
    assert torch.equal(method.targets(moved).logits_btk, targets.logits_btk)


def published_step(state: dict[str, Any], views: list[Tensor], m: float, lr: float) -> float:
    """Algorithm 1 with SGD: loss with the old centre, step, teacher, centre."""
    student, teacher, center = state["student"], state["teacher"], state["center"]
    s = [student(view) for view in views]
    with torch.no_grad():
        t = [teacher(view) for view in views]

    def h(t: Tensor, s: Tensor) -> Tensor:
        return -(((t - center) / 0.04).softmax(1) * (s / 0.1).log_softmax(1)).sum(1).mean()

    loss = h(t[0], s[1]) / 2 + h(t[1], s[0]) / 2
    params = list(student.parameters())
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.data -= lr * g
    for p_t, p_s in zip(teacher.parameters(), params, strict=True):
        p_t.data = m * p_t + (1 - m) * p_s.data
    state["center"] = 0.9 * center + 0.1 * torch.cat(t).mean(0)
    return loss.item()


def test_steps_equal_the_published_order() -> None:
    ours, reference = small_method("dino"), small_method("dino")
    state = {
        "student": nn.Sequential(reference.encoder, reference.projector, reference.last),
        "teacher": reference.teacher,
        "center": reference.center.clone(),
    }
    trained = [p for p in ours.parameters() if p.requires_grad]
    for step in range(5):
        batch = two_views(6, seed=step)._replace(progress=step / 5)
        out, targets = ours(batch), ours.targets(batch)
        loss = ours.criterion(out, targets, batch._replace(views=[])).loss
        for p, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.data -= 0.5 * g
        ours.after_step(out, targets, batch)
        m = 1 - 0.1 * (1 + math.cos(math.pi * step / 5)) / 2
        assert loss.item() == pytest.approx(published_step(state, list(batch.views), m, 0.5), abs=1e-10)
    torch.testing.assert_close(ours.center, state["center"])
    assert ours.center.abs().max() > 1e-4


def test_teacher_temperature_follows_the_published_warm_up() -> None:
    schedule = Schedule(start=0.04, peak=0.07, warmup_epochs=29)
    temperatures = [schedule.at(epoch / 100, 100) for epoch in range(40)]
    expected = [0.04 + 0.03 * min(epoch, 29) / 29 for epoch in range(40)]
    assert temperatures == pytest.approx(expected)


def test_last_layer_is_weight_normed_with_gain_1_unless_trained() -> None:
    fixed, trained = small_method("dino"), small_method("dino", train_gain=True)
    z = normal(3, 5)
    v = fixed.last.weight
    expected = (z / z.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).T
    assert [name for name, _ in fixed.last.named_parameters()] == ["weight"]
    torch.testing.assert_close(fixed.last(z), expected)
    torch.testing.assert_close(trained.last(z), expected)
    with torch.no_grad():
        trained.last.weight_g.mul_(2)
    torch.testing.assert_close(trained.last(z), 2 * expected)


def test_published_head_and_defaults() -> None:
    projector = small_method("dino").projector
    layers = [type(layer).__name__ for layer in projector]
    assert layers == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert all(not layer.bias.any() for layer in projector[::2])
    assert projector[0].weight.std() < 0.04
    config = DINOConfig()
    assert (config.outputs, config.hidden_dim, config.embed_dim, config.momentum) == (65536, 2048, 256, 0.996)
    assert (config.student_temperature, config.center_momentum) == (0.1, 0.9)


def test_a_vit_takes_small_crops_and_drops_paths_in_the_student_only() -> None:
    config, cls = METHODS["dino"]
    encoder = build_encoder(
        EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2, drop_path=0.5), image_size=8
    )
    method: Any = cls.build(config(hidden_dim=7, embed_dim=5, outputs=8), encoder, FACTS)
    batch = two_views(6, small=2)
    batch = batch._replace(views=[F.interpolate(view.float(), scale_factor=2) for view in batch.views])
    assert [view.shape[-1] for view in batch.views] == [8, 8, 4, 4]
    out, targets = method(batch), method.targets(batch)
    assert (out.logits_bvk.shape, targets.logits_btk.shape) == ((6, 4, 8), (6, 2, 8))
    assert torch.equal(method.targets(batch).logits_btk, targets.logits_btk)
    assert not torch.equal(method(batch).logits_bvk, out.logits_bvk)
    method.criterion(out, targets, whole(6)).loss.backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert method.encoder.backbone.pos_embed.grad.any()
