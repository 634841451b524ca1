import math
from typing import Literal

import pytest
import torch
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.inva_spread import Embeddings, InvaSpreadConfig

Form = Literal["code", "paper"]


def loss_of(z: Tensor, temperature: float = 0.1, form: Form = "code") -> Tensor:
    method = small_method("inva_spread", temperature=temperature, form=form)
    return method.criterion(Embeddings(z), (), whole(len(z))).loss


def unit_rows(z: Tensor) -> list[list[float]]:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z.tolist()]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def code_transcription(z: Tensor, T: float) -> float:
    n = len(z)
    u = unit_rows(torch.cat([z[:, 0], z[:, 1]]))
    total = 0.0
    for i in range(2 * n):
        e = [math.exp(dot(u[i], u[k]) / T) if k != i else 0.0 for k in range(2 * n)]
        positive = (i + n) % (2 * n)
        total -= math.log(e[positive] / sum(e))
        total -= sum(math.log(1 - e[j] / sum(e)) for j in range(2 * n) if j not in (i, positive))
    return total / (2 * n)


def paper_transcription(z: Tensor, T: float) -> float:
    n, u, v = len(z), unit_rows(z[:, 0]), unit_rows(z[:, 1])

    def p(i: int, of: list[float]) -> float:
        return math.exp(dot(u[i], of) / T) / sum(math.exp(dot(u[k], of) / T) for k in range(n))

    total = 0.0
    for i in range(n):
        total -= math.log(p(i, v[i])) + sum(math.log(1 - p(i, u[j])) for j in range(n) if j != i)
    return total / n


@pytest.mark.parametrize("n", [2, 4, 7])
def test_loss_equals_float64_transcription(n: int) -> None:
    z = normal(n, 2, 5) * 3 + 1
    assert loss_of(z, 0.3).item() == pytest.approx(code_transcription(z, 0.3), abs=1e-10)
    assert loss_of(z, 0.3, "paper").item() == pytest.approx(paper_transcription(z, 0.3), abs=1e-10)


def test_closed_forms() -> None:
    N, T = 8, 0.1
    ones, e = torch.ones(N, 2, 16, dtype=torch.float64), math.exp(-1 / T)
    ideal = torch.eye(N, 16, dtype=torch.float64)[:, None].repeat(1, 2, 1)
    assert loss_of(ones, T).item() == pytest.approx(3.673950, abs=1e-6)
    assert loss_of(ideal, T).item() == pytest.approx(0.0012706, abs=1e-7)
    collapsed = math.log(N) + (N - 1) * math.log(N / (N - 1))
    assert loss_of(ones, T, "paper").item() == pytest.approx(collapsed, abs=1e-9)
    D = 1 + (N - 1) * e
    assert loss_of(ideal, T, "paper").item() == pytest.approx(
        math.log(D) - (N - 1) * math.log(1 - e / D), abs=1e-9
    )


@pytest.mark.parametrize("form", ["code", "paper"])
def test_loss_is_invariant_to_order_of_samples_and_to_scale(form: Form) -> None:
    z, scale = normal(6, 2, 5), torch.arange(1, 13, dtype=torch.float64).view(6, 2, 1)
    for same in (z[normal(6).argsort()], z * scale):
        torch.testing.assert_close(loss_of(same, form=form), loss_of(z, form=form))
    torch.testing.assert_close(loss_of(z.flip(1)), loss_of(z))  # the code's form is symmetric


def test_gradient_of_the_paper_s_form_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda z: loss_of(z, 0.5, "paper"), normal(4, 2, 8).requires_grad_())


def test_gradient_of_the_code_s_form_flows_through_anchors_only() -> None:
    """Anchor i moved alone, with all keys where they were, changes the loss by its gradient."""
    z, T, n = normal(4, 2, 8).requires_grad_(), 0.5, 4
    loss_of(z, T).backward()
    u = torch.nn.functional.normalize(torch.cat([z[:, 0], z[:, 1]]), dim=1)
    logits = (u @ u.detach().T / T).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    p, positive = logits.softmax(1), torch.arange(2 * n).roll(n)
    kept = torch.ones(2 * n, 2 * n, dtype=torch.bool).scatter(1, positive[:, None], False)
    loss = -(p[range(2 * n), positive].log() + (1 - p).log().mul(kept).sum(1)).mean()
    (expected,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(z.grad, expected)


def test_a_probability_of_one_gives_a_finite_loss_in_fp32() -> None:
    z = torch.eye(4)[:, None].repeat(1, 2, 1)
    z[1, 0] = z[0, 0]  # two images that look alike, far from their own views
    z[1, 1] = -z[0, 0]
    z = z.requires_grad_()
    loss = loss_of(z, 0.01)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_terms_add_up_and_published_head_and_defaults() -> None:
    method, batch = small_method("inva_spread"), two_views(6)
    losses = method.criterion(method(batch), (), whole(6))
    torch.testing.assert_close(losses.invariance + losses.spread, losses.loss.detach())
    assert method.projector.bias is not None
    config = InvaSpreadConfig()
    assert (config.embed_dim, config.temperature, config.view_forward) == (128, 0.1, "joint")
