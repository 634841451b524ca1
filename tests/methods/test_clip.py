import math
from typing import Any

import pytest
import torch
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.clip import Embeddings, Scale, contrast
from vergence.methods.method import ReadsText


def loss_of(z: Tensor, t: Tensor, scale: float | Tensor = 1 / 0.07, large: int = 2) -> Tensor:
    return contrast(Embeddings(z, t, torch.as_tensor(scale, dtype=z.dtype).expand(len(t))), large).loss


def cosine(a: list[float], b: list[float]) -> float:
    def length(x: list[float]) -> float:
        return math.sqrt(sum(v * v for v in x))

    return sum(x * y for x, y in zip(a, b, strict=True)) / length(a) / length(b)


@pytest.mark.parametrize(("large", "views"), [(1, 1), (2, 2), (2, 5)])
def test_loss_equals_float64_transcription(large: int, views: int) -> None:
    z, t, s, n = normal(4, views, 5) * 2, normal(4, 5, seed=1), 3.7, 4

    def cross_entropy(row: list[float], i: int) -> float:
        return -math.log(math.exp(row[i]) / sum(math.exp(x) for x in row))

    def of_view(v: int, by_text: bool) -> float:
        total = 0.0
        for i in range(n):
            pairs = [(j, i) if by_text else (i, j) for j in range(n)]
            total += cross_entropy([s * cosine(z[a, v].tolist(), t[b].tolist()) for a, b in pairs], i)
        return total / n

    of_images = sum(of_view(v, by_text=False) for v in range(views)) / views
    of_texts = sum(of_view(v, by_text=True) for v in range(large)) / large
    assert loss_of(z, t, s, large).item() == pytest.approx((of_images + of_texts) / 2, abs=1e-10)


def test_closed_forms() -> None:
    s, same = 1 / 0.07, torch.ones(8, 1, 3, dtype=torch.float64)
    assert loss_of(same, same[:, 0], s).item() == pytest.approx(2.079442, abs=1e-6)  # ln 8
    eye = torch.eye(8, dtype=torch.float64)
    assert loss_of(eye[:, None], eye, s).item() == pytest.approx(4.374e-6, abs=1e-9)  # ln(1 + 7 exp(-s))


def test_gradient_by_finite_differences() -> None:
    inputs = [x.requires_grad_() for x in (normal(4, 2, 5), normal(4, 5, seed=1), normal(1).abs())]
    assert torch.autograd.gradcheck(loss_of, inputs)


def test_loss_is_symmetric_and_invariant_to_order_and_length() -> None:
    z, t, order = normal(6, 1, 5), normal(6, 5, seed=1), normal(6).argsort()
    torch.testing.assert_close(loss_of(t[:, None], z[:, 0]), loss_of(z, t))
    torch.testing.assert_close(loss_of(z[order], t[order]), loss_of(z, t))
    torch.testing.assert_close(loss_of(z * 3, t * 2), loss_of(z, t))


def test_scale_starts_at_the_published_value_is_cut_and_keeps_its_gradient() -> None:
    scale = Scale()
    assert scale(3).tolist() == pytest.approx([1 / 0.07] * 3)
    for t, cut in ((5.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))):
        scale.logit_scale.data.fill_(t)
        scale.logit_scale.grad = None
        value = scale(2)
        assert value.tolist() == pytest.approx([cut] * 2)
        value.sum().backward()
        assert scale.logit_scale.grad is not None
        assert scale.logit_scale.grad.item() == pytest.approx(2 * cut)


def test_training_tells_texts_by_their_end_and_images_by_their_texts() -> None:
    method, batch = small_method("clip"), two_views(8)
    optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = method.criterion(method(batch), (), whole(8)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_images_and_texts_are_embedded_as_in_training() -> None:
    method, batch = small_method("clip"), two_views(4)
    out: Any = method(batch)
    torch.testing.assert_close(method.embed_images(method.encoder(batch.views[1])), out.z_bvd[:, 1])
    torch.testing.assert_close(method.embed_text(batch.fields), out.t_bd)
    assert isinstance(method, ReadsText)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads must divide its width of 8"):
        small_method("clip", text_heads=3)
