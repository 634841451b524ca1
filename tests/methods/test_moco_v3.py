import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_methods import FACTS, normal, small_method, two_views, whole
from torch import Tensor, nn

from vergence.methods.catalog import METHODS
from vergence.methods.moco_v3 import Embeddings, MoCoV3Config, Targets
from vergence.methods.parts.backbones import EncoderConfig, build_encoder


def loss_of(q: Tensor, k: Tensor, temperature: float = 0.2) -> Tensor:
    method = small_method("mocov3", temperature=temperature)
    batch = whole(len(q))._replace(num_large=k.shape[1])
    loss: Tensor = method.criterion(Embeddings(q), Targets(k), batch).loss
    return loss


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


@pytest.mark.parametrize(("large", "views"), [(2, 2), (2, 4), (3, 3)])
def test_loss_equals_float64_transcription(large: int, views: int) -> None:
    q, k, T = normal(5, views, 4) * 2, F.normalize(normal(5, large, 4, seed=1), dim=2), 0.3
    terms = []
    for t in range(large):
        for s in range(views):
            if s != t:
                total = 0.0
                for i in range(5):
                    row = unit(q[i, s].tolist())
                    e = [
                        math.exp(sum(a * b for a, b in zip(row, k[j, t].tolist(), strict=True)) / T)
                        for j in range(5)
                    ]
                    total -= 2 * T * math.log(e[i] / sum(e)) / 5
                terms.append(total)
    expected = sum(terms) if views == 2 else sum(terms) / len(terms)
    assert loss_of(q, k, T).item() == pytest.approx(expected, abs=1e-10)


def test_closed_forms() -> None:
    N, T = 512, 0.2
    same = torch.ones(N, 2, 1, dtype=torch.float64)
    assert loss_of(same, same, T).item() == pytest.approx(4 * T * math.log(N), abs=1e-9)
    eye = torch.eye(64, dtype=torch.float64)[:, None].expand(64, 2, 64)
    expected = 4 * T * math.log(1 + 63 * math.exp(-1 / T))
    assert loss_of(eye, eye, T).item() == pytest.approx(expected, abs=1e-9)


def test_gradient_by_finite_differences_and_none_into_keys() -> None:
    k = F.normalize(normal(4, 2, 5, seed=1), dim=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: loss_of(q, k), normal(4, 3, 5).requires_grad_())
    loss_of(normal(4, 2, 5).requires_grad_(), k).backward()
    assert k.grad is None
    method, batch = small_method("mocov3"), two_views(4)
    views = [view.clone().requires_grad_() for view in batch.views]
    assert not method.targets(batch._replace(views=views)).k_btd.requires_grad


def test_loss_is_invariant_to_order_scale_and_swapped_views() -> None:
    q, k, order = normal(6, 2, 5), F.normalize(normal(6, 2, 5, seed=1), dim=2), normal(6).argsort()
    torch.testing.assert_close(loss_of(q[order], k[order]), loss_of(q, k))
    torch.testing.assert_close(loss_of(q * 3, k), loss_of(q, k))
    torch.testing.assert_close(loss_of(q.flip(1), k.flip(1)), loss_of(q, k))


def published_step(state: dict[str, Any], views: list[Tensor], m: float | None, T: float) -> float:
    """Algorithm 1 with SGD: teacher first (nothing to move at the start), both directions, step."""
    f_q, f_k = state["student"], state["teacher"]
    if m is not None:
        for p_k, p_q in zip(f_k.parameters(), f_q[:2].parameters(), strict=True):
            p_k.data = m * p_k + (1 - m) * p_q.data
    q = [F.normalize(f_q(view), dim=1) for view in views]
    with torch.no_grad():
        k = [F.normalize(f_k(view), dim=1) for view in views]
    labels = torch.arange(len(q[0]))
    loss = sum(2 * T * F.cross_entropy(q[a] @ k[1 - a].T / T, labels) for a in (0, 1))
    assert isinstance(loss, Tensor)
    params = list(f_q.parameters())
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.data -= 0.5 * g
    return loss.item()


def test_steps_equal_the_published_order() -> None:
    ours, reference = small_method("mocov3", temperature=0.2), small_method("mocov3", temperature=0.2)
    state = {
        "student": nn.Sequential(reference.encoder, reference.projector, reference.predictor),
        "teacher": reference.teacher,
    }
    trained = [p for p in ours.parameters() if p.requires_grad]
    for step in range(4):
        batch = two_views(6, seed=step)._replace(progress=step / 4)
        out, targets = ours(batch), ours.targets(batch)
        loss = ours.criterion(out, targets, batch._replace(views=[])).loss
        for p, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.data -= 0.5 * g
        ours.after_step(out, targets, batch)
        # the momentum of the step before, after which our teacher moved
        m = 1 - 0.1 * (1 + math.cos(math.pi * (step - 1) / 4)) / 2 if step else None
        assert loss.item() == pytest.approx(published_step(state, list(batch.views), m, 0.2), abs=1e-10)


def test_patch_projection_of_a_vit_stays_as_it_is_in_student_and_teacher() -> None:
    config, cls = METHODS["mocov3"]
    encoder = build_encoder(
        EncoderConfig(
            name="vit_tiny_patch16_224", patch_size=4, depth=1, positions="sincos", freeze_patches=True
        ),
        image_size=8,
    )
    method: Any = cls.build(config(hidden_dim=7, embed_dim=5), encoder, FACTS)
    patches = {n: p.clone() for n, p in method.named_parameters() if "patch_embed" in n}
    assert len(patches) == 4  # weight and bias, of student and teacher
    batch = two_views(4)
    batch = batch._replace(views=[F.interpolate(view.float(), scale_factor=2) for view in batch.views])
    out, targets = method(batch), method.targets(batch)
    method.criterion(out, targets, whole(4)).loss.backward()
    torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    method.after_step(out, targets, batch)
    after = dict(method.named_parameters())
    assert all(
        torch.equal(after[name], value) and not after[name].requires_grad for name, value in patches.items()
    )


def test_published_heads_and_defaults() -> None:
    def layers(head: nn.Module) -> list[str]:
        return [type(m).__name__ for m in head.modules() if not list(m.children())]

    plain, vit = small_method("mocov3"), small_method("mocov3", hidden_layers=2, predictor_last_norm=True)
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert layers(plain.projector) == [*hidden, "Linear", "BatchNorm1d"]
    assert layers(plain.predictor) == [*hidden, "Linear", "Identity"]
    assert layers(vit.projector) == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert layers(vit.predictor) == [*hidden, "Linear", "BatchNorm1d"]
    assert plain.projector[1].weight is plain.projector[1].bias is None
    assert not [name for name, _ in plain.projector.named_parameters() if name.endswith("0.0.bias")]
    config = MoCoV3Config()
    assert (config.hidden_dim, config.embed_dim, config.temperature, config.momentum) == (
        4096,
        256,
        1.0,
        0.99,
    )
