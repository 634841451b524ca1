import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from small_methods import normal, small_method, two_views, whole
from torch import Tensor

from vergence.methods.inst_disc import Embeddings, InstDisc, InstDiscConfig


def method_of(rows: Tensor, **settings: Any) -> InstDisc:
    """With these rows as the whole bank."""
    method: InstDisc = small_method("inst_disc", embed_dim=rows.shape[1], **settings)
    method.bank.rows = rows.clone()
    return method


def loss_of(z: Tensor, rows: Tensor, **settings: Any) -> Tensor:
    """Of one view of images 0, 1, ..."""
    return method_of(rows, **settings).criterion(Embeddings(z[:, None]), (), whole(len(z))).loss


def exponentials(u: list[float], rows: list[list[float]], T: float) -> list[float]:
    length = math.sqrt(sum(x * x for x in u))
    return [math.exp(sum(a * b for a, b in zip(u, row, strict=True)) / length / T) for row in rows]


def test_nce_equals_float64_transcription() -> None:
    z, rows, n, m, T = normal(4, 5) * 2, normal(9, 5, seed=1) / 2, 9, 6, 0.3
    method = method_of(rows, num_negatives=m, temperature=T)
    drawn = method.bank.draw(torch.arange(4), m, 0.0).tolist()
    e = [exponentials(z[i].tolist(), rows[[i, *drawn[i]]].tolist(), T) for i in range(4)]
    Z = n * sum(map(sum, e)) / (4 * (1 + m))
    total = 0.0
    for i in range(4):
        p = [x / Z for x in e[i]]
        total -= math.log(p[0] / (p[0] + m / n))
        total -= sum(math.log((m / n) / (x + m / n)) for x in p[1:])
    loss = method.criterion(Embeddings(z[:, None]), (), whole(4)).loss
    assert loss.item() == pytest.approx(total / 4, abs=1e-10)


@pytest.mark.parametrize("m", [6, "all"])
def test_softmax_and_proximal_term_equal_float64_transcription(m: Any) -> None:
    z, rows, T = normal(4, 5) * 2, normal(9, 5, seed=1) / 2, 0.3
    settings = {"form": "softmax", "num_negatives": m, "temperature": T}
    total, proximal = 0.0, 0.0
    for i in range(4):
        drawn = method_of(rows).bank.draw(torch.arange(4), 6, 0.0)[i].tolist()
        others = drawn if m == 6 else [j for j in range(9) if j != i]
        e = exponentials(z[i].tolist(), rows[[i, *others]].tolist(), T)
        total -= math.log(e[0] / sum(e))
        u = (z[i] / z[i].norm()).tolist()
        proximal += sum((a - b) ** 2 for a, b in zip(u, rows[i].tolist(), strict=True))
    assert loss_of(z, rows, **settings).item() == pytest.approx(total / 4, abs=1e-10)
    with_term = loss_of(z, rows, **settings, proximal_weight=3.0).item()
    assert with_term == pytest.approx(total / 4 + 3 * proximal / 4, abs=1e-10)


def test_closed_forms() -> None:
    n, T = 64, 0.1
    same, rows = torch.eye(n, dtype=torch.float64)[:4], torch.eye(n, dtype=torch.float64)
    everything = {"form": "softmax", "num_negatives": "all", "temperature": T}
    assert loss_of(same, torch.ones_like(rows), **everything).item() == pytest.approx(4.158883, abs=1e-6)
    assert loss_of(same, rows, **everything).item() == pytest.approx(0.002856, abs=1e-6)
    for m, expected in ((4096, 9.317888), (64, 5.166655)):  # all rows equal: P = 1 / n
        loss = loss_of(same, torch.ones_like(rows), num_negatives=m, temperature=T)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    others = torch.cat([same[:1], torch.eye(n, dtype=torch.float64)[1:2].repeat(n - 1, 1)])
    method = method_of(others, num_negatives=64, temperature=0.2)
    method.normaliser.fill_(n)
    method.bank.draw = lambda ids, count, progress: torch.full((len(ids), count), 5)  # type: ignore[method-assign]
    ideal = method.criterion(Embeddings(same[:1, None]), (), whole(1)).loss
    assert ideal.item() == pytest.approx(1.350801, abs=1e-6)


def test_loss_of_many_views_is_the_mean_over_them() -> None:
    z, rows = normal(4, 3, 5), normal(9, 5, seed=1)
    settings = {"form": "softmax", "num_negatives": "all"}
    apart = [loss_of(z[:, v], rows, **settings).item() for v in range(3)]
    together = method_of(rows, **settings).criterion(Embeddings(z), (), whole(4)).loss.item()
    assert together == pytest.approx(sum(apart) / 3, abs=1e-12)


def test_positives_are_the_rows_of_the_samples_ids_wherever_they_stand() -> None:
    z, rows, order = normal(6, 5), normal(9, 5, seed=1), torch.tensor([3, 1, 5, 0, 2, 4])
    for settings in ({"form": "softmax"}, {"form": "nce"}):
        method = method_of(rows, **settings)
        batch = whole(6)._replace(ids=order)
        torch.testing.assert_close(
            method.criterion(Embeddings(z[order][:, None]), (), batch).loss, loss_of(z, rows, **settings)
        )


@pytest.mark.parametrize("form", ["nce", "softmax"])
def test_gradient_by_finite_differences(form: str) -> None:
    method = method_of(normal(9, 8, seed=1), form=form, temperature=0.5, proximal_weight=0.5)
    method.normaliser.fill_(9)

    def loss(z: Tensor) -> Tensor:
        return method.criterion(Embeddings(z[:, None]), (), whole(4)).loss

    assert torch.autograd.gradcheck(loss, normal(4, 8).requires_grad_())


def test_rows_are_scored_before_they_are_written_and_only_of_the_first_view() -> None:
    method, batch = small_method("inst_disc"), two_views(5)
    old = method.bank.rows.clone()
    out = method(batch)
    method.criterion(out, (), whole(5))
    assert torch.equal(method.bank.rows, old)
    method.after_step(out, (), batch)
    u = F.normalize(out.z_bvd[:, 0].detach(), dim=1)
    torch.testing.assert_close(method.bank.rows[:5], F.normalize((old[:5] + u) / 2, dim=1))
    assert torch.equal(method.bank.rows[5:], old[5:])


def test_normaliser_is_that_of_the_first_step_for_good() -> None:
    method, zs = small_method("inst_disc"), []
    for step in range(3):
        batch = two_views(5, seed=step)._replace(progress=step / 3)
        out = method(batch)
        method.criterion(out, (), batch._replace(views=[]))
        method.after_step(out, (), batch)
        zs.append(method.normaliser.item())
    assert zs[0] > 0
    assert zs == [zs[0]] * 3


def test_nce_with_the_whole_bank_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_negatives all goes with form softmax"):
        InstDiscConfig(num_negatives="all")


def test_published_head_and_defaults() -> None:
    method = small_method("inst_disc")
    assert method.projector.bias is not None
    assert len(method.bank.rows) == method.data.num_ids
    config = InstDiscConfig()
    assert (config.embed_dim, config.temperature, config.num_negatives, config.momentum, config.form) == (
        128,
        0.07,
        4096,
        0.5,
        "nce",
    )
